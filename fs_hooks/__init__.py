"""One node's hook: publishes which conferences run on this BigBlueButton node."""
