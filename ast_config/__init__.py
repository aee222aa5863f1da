"""The gateway's Asterisk configuration: templates, rendering and checks."""
