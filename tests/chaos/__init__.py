"""Chaos on the real parts: ``python -m tests.chaos`` (``make chaos``), see docs/chaos.md.

`schedule` and `plan` say from a seed what fails when and what callers do; `site` runs everything; `faults` and `load`
carry both out; `gather` collects what was seen; `verdict`, `journal` and `fold` judge it, purely.
"""
