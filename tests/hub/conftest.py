import pytest
from hub_server import HubServer, forget_connections
from huggingface_hub import constants

from hf_elastic import upload


@pytest.fixture
def make_hub(tmp_path, monkeypatch):
    """Start a local Hub that this process, online for once, takes for the Hub."""
    servers = []

    def make(**options) -> HubServer:
        server = HubServer(tmp_path / "hub", **options).__enter__()
        servers.append(server)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        forget_connections()
        return server

    yield make
    for server in servers:
        server.__exit__()
    forget_connections()


@pytest.fixture
def hub(make_hub):
    return make_hub()


@pytest.fixture
def api(hub):
    return upload.connect()
