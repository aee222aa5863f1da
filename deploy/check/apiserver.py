"""A real Kubernetes API server on 127.0.0.1 for as long as a block lasts: etcd, kube-apiserver, and kubectl's way in.

No controller runs: nothing that is written there is ever started. What is checked is what the server itself says.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from callyard.processes import Child, free_port
from deploy.check.commands import Done, run
from deploy.check.report import CheckError
from deploy.check.tools import Tools

HOST = "127.0.0.1"
START_SECONDS = 120
"""It takes some five; on a machine that builds something meanwhile, many more."""


class Cluster:
    """The API server. ``kubectl`` speaks to it as its administrator."""

    def __init__(self, tools: Tools, directory: Path) -> None:
        self._tools = tools
        self._directory = directory
        self._configuration = directory / "kubeconfig"

    async def start(self, stack: AsyncExitStack) -> None:
        etcd_port, peer_port, port = free_port(HOST), free_port(HOST), free_port(HOST)
        token = secrets.token_hex(16)
        key = self._directory / "service-accounts.key"
        key.write_bytes(_private_key())
        tokens = self._directory / "tokens.csv"
        tokens.write_text(f"{token},check,check,system:masters\n", encoding="ascii")
        certificates = self._directory / "certificates"
        etcd = Child(
            "etcd",
            [
                self._tools.etcd, f"--data-dir={self._directory / 'etcd'}", "--name=check", "--log-level=warn",
                "--unsafe-no-fsync",
                f"--listen-client-urls=http://{HOST}:{etcd_port}", f"--advertise-client-urls=http://{HOST}:{etcd_port}",
                f"--listen-peer-urls=http://{HOST}:{peer_port}", f"--initial-advertise-peer-urls=http://{HOST}:{peer_port}",
                f"--initial-cluster=check=http://{HOST}:{peer_port}",
            ],
            log=self._directory / "etcd.log",
        )  # fmt: skip
        server = Child(
            "kube-apiserver",
            [
                self._tools.kube_apiserver, f"--etcd-servers=http://{HOST}:{etcd_port}",
                f"--bind-address={HOST}", f"--advertise-address={HOST}", f"--secure-port={port}",
                "--endpoint-reconciler-type=none", f"--cert-dir={certificates}",
                "--service-cluster-ip-range=10.96.0.0/16",
                "--service-account-issuer=https://kubernetes.default.svc", f"--service-account-signing-key-file={key}",
                f"--service-account-key-file={key}", f"--token-auth-file={tokens}", "--authorization-mode=RBAC",
            ],
            log=self._directory / "kube-apiserver.log",
        )  # fmt: skip
        for child in (etcd, server):
            child.start()
            stack.push_async_callback(child.stop)
        await server.until(_exists(certificates / "apiserver.crt"), START_SECONDS, "a certificate's owner")
        self._configuration.write_text(json.dumps(_kubeconfig(port, certificates / "apiserver.crt", token)))
        await server.until(self._ready, START_SECONDS)
        # The namespaces' own service account is made by a controller, which does not run here.
        await self._default_account("default")

    async def _ready(self) -> bool:
        return (await self.kubectl("get", "--raw", "/readyz")).status == 0

    async def _default_account(self, namespace: str) -> None:
        await self.apply(
            [{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}}]
        )

    async def kubectl(self, *argv: str | Path, given: str | None = None) -> Done:
        """Run kubectl."""
        return await run(self._tools.kubectl, f"--kubeconfig={self._configuration}", *argv, given=given)

    async def apply(self, documents: Sequence[dict[str, Any]]) -> None:
        """Write these for real; raises `CheckError` with the server's words where it refuses one."""
        if not documents:
            return
        done = await self.try_apply(documents, dry_run=False)
        if done.status != 0:
            raise CheckError(done.words())

    async def try_apply(self, documents: Sequence[dict[str, Any]], *, dry_run: bool = True) -> Done:
        """What the server says of these: strictly (an unknown field is an error), and without keeping them."""
        # Each on its own, not as a List: of that kubectl would look for unknown fields itself, and end at the first.
        given = "\n---\n".join(json.dumps(document) for document in documents)
        more = ("--dry-run=server",) if dry_run else ()
        return await self.kubectl("apply", "--server-side", "--validate=strict", *more, "-f", "-", given=given)

    async def define(self, folder: Path) -> int:
        """Let it know the custom resources of this folder; returns how many there are, all of them served."""
        made = await self._must("apply", "--server-side", "-f", folder)
        await self._must("wait", "--for=condition=Established", "--timeout=60s", "-f", folder)
        return len(made.splitlines())

    async def namespace(self, document: dict[str, Any]) -> None:
        """Make a namespace, with the service account that each one has."""
        await self.apply([document])
        await self._default_account(document["metadata"]["name"])

    async def schema(self) -> dict[str, Any]:
        """All that it serves, as OpenAPI 2."""
        schema: dict[str, Any] = json.loads(await self._must("get", "--raw", "/openapi/v2"))
        return schema

    async def _must(self, *argv: str | Path) -> str:
        done = await self.kubectl(*argv)
        if done.status != 0:
            raise CheckError(f"kubectl {argv[0]}: {done.words()}")
        return done.out


@asynccontextmanager
async def running(tools: Tools, directory: Path) -> AsyncIterator[Cluster]:
    """An empty cluster; its data and logs are in the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(tools, directory)
    async with AsyncExitStack() as stack:
        await cluster.start(stack)
        yield cluster


def _exists(path: Path) -> Any:
    async def condition() -> bool:
        return await asyncio.to_thread(lambda: path.is_file() and path.stat().st_size > 0)

    return condition


def _private_key() -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _kubeconfig(port: int, certificate: Path, token: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "check",
        "contexts": [{"name": "check", "context": {"cluster": "check", "user": "check"}}],
        "clusters": [
            {
                "name": "check",
                "cluster": {"server": f"https://{HOST}:{port}", "certificate-authority": str(certificate)},
            }
        ],
        "users": [{"name": "check", "user": {"token": token}}],
    }
