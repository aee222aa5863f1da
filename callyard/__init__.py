"""What all of Callyard shares: the contract, settings, topics, Kafka clients, embedded Kafka and the command line.

This package must never import a worker (``streams``, ``agents``, ``fs_hooks``) or ``ast_config``: the command line
finds them by name, so that each place installs only what it runs.
"""

__version__ = "0.1.0"
