"""A program over the `etcd3` package: runs in an environment of its own, reads commands as JSON lines, answers so."""

import base64
import json
import sys
from typing import Any

import etcd3  # type: ignore[import-not-found]


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _run(client: Any, command: str, args: dict[str, Any]) -> Any:
    """What the command answers."""
    if command == "put":
        lease = client.lease(args["ttl"]) if "ttl" in args else None
        client.put(args["key"], base64.b64decode(args["value"]), lease)
        return lease.id if lease else None
    if command == "get":
        value, meta = client.get(args["key"])
        return None if value is None else [_text(value), meta.create_revision, meta.mod_revision, meta.version]
    if command == "list":
        return {meta.key.decode(): _text(value) for value, meta in client.get_prefix(args["prefix"])}
    if command == "delete":
        return client.delete(args["key"])
    if command == "revoke":
        return bool(client.revoke_lease(args["lease"]))
    if command == "create":
        changes = client.transactions
        succeeded, _ = client.transaction(
            compare=[changes.create(args["key"]) == 0],
            success=[changes.put(args["key"], base64.b64decode(args["value"]))],
            failure=[],
        )
        return succeeded
    if command == "replace":
        changes = client.transactions
        succeeded, _ = client.transaction(
            compare=[changes.mod(args["key"]) == args["mod_revision"]],
            success=[changes.put(args["key"], base64.b64decode(args["value"]))],
            failure=[],
        )
        return succeeded
    if command == "watch":
        events, cancel = client.watch_prefix(args["prefix"], start_revision=args["revision"])
        found = [next(events) for _ in range(args["count"])]
        cancel()
        return [
            ["put" if isinstance(event, etcd3.events.PutEvent) else "delete", event.key.decode(), _text(event.value)]
            for event in found
        ]
    raise ValueError(command)


def main() -> None:
    """Answer until the input ends."""
    host, port = sys.argv[1:]
    client = etcd3.client(host=host, port=int(port), timeout=10)
    for line in sys.stdin:
        args = json.loads(line)
        answer = _run(client, args.pop("command"), args)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
