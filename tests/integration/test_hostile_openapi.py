"""schemathesis over our own OpenAPI document: no answer blames the server, and all are what the document says."""

import asyncio
from pathlib import Path

import pytest

from tests.support import onnxmodels
from tests.support.gateway import serve_gateway
from tests.support.modelfolders import Folder, serve_folder
from tests.support.schemathesis import schemathesis


@pytest.mark.timeout(600)
async def test_the_protocol_is_as_the_document_says(tmp_path: Path) -> None:
    Folder(tmp_path / "models").version("m", 1, onnxmodels.scale(2))
    async with (
        serve_folder(tmp_path / "models") as serving,
        serve_gateway(inference_address=serving.app.address) as gateway,
    ):
        document, url = f"{gateway.url()}/openapi.json", gateway.url("oip")
        only = "^/v2/(models|repository|health|systemsharedmemory)"
        found = await asyncio.to_thread(schemathesis, document, url, tmp_path, examples=1, only=only)
        assert found.status == 0, found.text
        assert await serving.client.live()
