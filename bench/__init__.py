"""The bench: how long a caller waits from a conference's opening to the dial, beside the floor and beside polling.

``make bench``, or ``python -m bench``; what is measured and how: docs/bench.md. It starts private real parts (Kafka,
Asterisk, SIPp) on 127.0.0.1 and ends them. It must never change how the workers work: what it knows of them comes from
Kafka's records, from their logs and from an observer of its own at Asterisk's manager interface.
"""
