"""``callyard keys``: makes the key by which a node signs its registrations."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from callyard.errors import CommandError
from callyard.signing import Signer, SigningError, read_nodes

app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def keys(
    node: Annotated[str, typer.Option(help="The node's id (CALLYARD_NODE_ID).")],
    hosts: Annotated[str, typer.Option(help="Hosts that its SIP URI may name, comma-separated: what callers reach.")],
    out: Annotated[Path, typer.Option(help="File for the private key; must not exist yet. Belongs on the node alone.")],
) -> None:
    """Make a node's key; print its line of the file that CALLYARD_POLICY_NODES names."""
    signer, pem = Signer.make()
    line = f"{node} {signer.public_key} {hosts}"
    try:
        [known] = read_nodes(line)
        with os.fdopen(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(pem)
    except (SigningError, ValueError) as error:
        raise CommandError(str(error).removeprefix("line 1: ")) from None
    except FileExistsError:
        raise CommandError(f"{out} exists: a key is never overwritten; move it away, or choose another file") from None
    except OSError as error:
        raise CommandError(f"{out} cannot be written: {error.strerror}") from None
    typer.echo(known.line)
