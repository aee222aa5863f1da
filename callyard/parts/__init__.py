"""Real parts for demo, tests and bench: they run privately, on loopback, and leave nothing behind."""
