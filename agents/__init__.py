"""One gateway's agent: publishes what its Asterisk's callers do and applies dial instructions to them."""
