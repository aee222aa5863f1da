"""``callyard audit …``: questions to the journal."""

from __future__ import annotations

import typer

from streams.audit import proof_commands, story_command

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
app.add_typer(story_command.app)
app.command()(proof_commands.verify)
app.command()(proof_commands.checkpoint)
