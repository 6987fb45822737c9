"""What the registry shows on its operations port."""

import asyncio
import urllib.request

from tests.support.registry import DIGEST, settings
from tests.support.serve import serving
from tests.support.wait import until
from tidemill.clients.registry import RegistryClient
from tidemill.kv.sqlite import SqliteKv
from tidemill.registry.app import build


async def test_events_and_instances_are_counted() -> None:
    kv = await SqliteKv.open(":memory:")
    await before(kv)
    app = build(settings(), kv=kv)
    async with serving(app) as address, RegistryClient(address) as client:

        async def shown() -> str:
            with await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{app.ops_port}/metrics") as reply:
                return str(reply.read().decode())

        await client.create_model("m")
        await client.create_version("m", format="onnx", artifact=DIGEST)
        await client.create_version("m", format="onnx", artifact=DIGEST)
        page = await shown()
        assert 'tidemill_registry_events_total{resource="model",type="created"} 1.0' in page
        assert 'tidemill_registry_events_total{resource="model_version",type="created"} 2.0' in page

        async def counted() -> bool:
            return 'tidemill_instances{service="inference"} 2.0' in await shown()

        await until(counted)
    await kv.close()


async def before(kv: SqliteKv) -> None:
    """Instances that are there when the registry starts."""
    async with serving(build(settings(), kv=kv)) as address, RegistryClient(address) as client:
        for name in ("a", "b"):
            await client.register_instance("inference", name, "127.0.0.1:1", ttl=60)
