"""``make manifests``: what is under deploy/ is checked by the programs that will read it, not by opinions about it.

The manifests go through a real API server, the image is built, and its workers run as real containers. Nothing here is
part of Callyard: no worker imports it, and it must never write into the repository, listen on another address than
127.0.0.1, or leave a process, container or image behind (what is cached in ``CALLYARD_CACHE/kubernetes`` excepted).
"""
