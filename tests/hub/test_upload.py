"""Uploading with the real client: what is sent, what is refused, and what happens when the Hub or the network fails."""

import time
from pathlib import Path

import pytest
from hub_server import Fault, forget_connections
from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from hf_elastic.hub import errors as hub_errors
from hf_elastic.hub.client import Upload, connect, full_name, push
from hf_elastic.hub.errors import HubError

WEIGHTS = bytes(range(256)) * 400
FILES = {"README.md": b"---\ntags:\n- elastic\n---\n# Hi\n", "config.json": b"{}", "model.safetensors": WEIGHTS}


@pytest.fixture
def naps(monkeypatch):
    """Seconds that the client wanted to wait; nobody does."""
    naps = []
    monkeypatch.setattr(time, "sleep", naps.append)
    return naps


def test_a_new_repository(hub, api):
    [(upload, commit)] = push([Upload("user/model", FILES)], api)
    assert hub.files("user/model") == FILES
    assert commit == hub.repositories["user/model"].branches["main"].oid
    assert len(hub.commits("user/model")) == 2  # the Hub's own first one, and one of ours
    assert not hub.repositories["user/model"].private
    assert str(upload) == "user/model"


def test_files_from_disk_and_in_parts(make_hub, tmp_path):
    hub = make_hub(part_size=30_000)
    path = tmp_path / "weights"
    path.write_bytes(WEIGHTS)
    push([Upload("user/model", {"model.safetensors": path})], connect())
    assert hub.files("user/model") == {"model.safetensors": WEIGHTS}
    assert len(hub.lines(r"PUT /storage/\w+/\d+")) == 4


def test_pages_of_a_long_listing(make_hub):
    hub = make_hub(page_size=3)
    files = {f"{index}.txt": b"%d" % index for index in range(10)}
    push([Upload("user/model", files)], connect())
    before = len(hub.seen)
    push([Upload("user/model", files)], connect())
    assert len(hub.lines("GET .*/tree/")) == 4 and len(hub.commits("user/model")) == 2
    assert not [seen for seen in hub.seen[before:] if not seen.line.startswith("GET")]


def test_only_what_is_missing(hub, api):
    hub.create("user/model", {"config.json": b"{}", "notes.txt": b"mine"})
    push([Upload("user/model", FILES)], api)
    assert hub.files("user/model") == {**FILES, "notes.txt": b"mine"}
    committed = hub.lines("POST .*/preupload/")[0]
    assert committed.status == 200


@pytest.mark.parametrize(
    "there", [{"config.json": b"[]"}, {"model.safetensors": WEIGHTS[::-1]}, {"model-00001-of-2.safetensors": b"x"}]
)
def test_what_differs_is_refused_before_anything_is_sent(hub, api, there):
    hub.create("user/second", there)
    with pytest.raises(ValueError, match=rf"user/second exists and differs: {next(iter(there))}; add --overwrite true"):
        push([Upload("user/first", FILES), Upload("user/second", FILES)], api)
    assert "user/first" not in hub.repositories
    assert hub.files("user/second") == there


def test_overwriting_replaces_and_removes_weights_of_an_earlier_push(hub, api):
    hub.create("user/model", {"config.json": b"[]", "old.safetensors": b"x", "onnx/model.onnx": b"y", "notes.txt": b"mine"})
    push([Upload("user/model", FILES)], api, overwrite=True)
    assert hub.files("user/model") == {**FILES, "notes.txt": b"mine", "onnx/model.onnx": b"y"}


def test_a_branch_starts_without_the_files_of_main(hub, api):
    push([Upload("user/model", FILES), Upload("user/model", {"config.json": b"1"}, revision="small")], api)
    assert hub.files("user/model", "small") == {"config.json": b"1"}
    assert hub.files("user/model") == FILES
    with pytest.raises(ValueError, match=r"user/model@small exists and differs: config.json"):
        push([Upload("user/model", {"config.json": b"2"}, revision="small")], api)


def test_private(hub, api):
    push([Upload("user/secret", FILES)], api, private=True)
    assert hub.repositories["user/secret"].private
    hub.create("user/open")
    with pytest.raises(ValueError, match="user/open exists and is public"):
        push([Upload("user/open", FILES)], api, private=True)


def test_the_owner_is_the_user_of_the_token(hub, api):
    assert full_name(api, "model") == "user/model"
    assert full_name(api, "owner/model") == "owner/model"
    with pytest.raises(ValueError, match="a b"):
        full_name(api, "a b")


def test_a_file_that_holds_the_token(hub, api):
    with pytest.raises(ValueError, match=r"^args.json holds your token for the Hub; it is not uploaded$"):
        push([Upload("user/model", {**FILES, "args.json": b'{"hub_token": "hf_right"}'})], api)
    assert not hub.repositories


# --- failures ---------------------------------------------------------------------------------------------------------


def error_of(uploads, api, **options) -> str:
    with pytest.raises(HubError) as caught:
        push(uploads, api, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert api.token not in message
    return message


def test_a_wrong_token(hub):
    assert error_of([Upload("user/model", FILES)], connect("hf_wrong")).startswith("the Hub does not accept the token (401)")


@pytest.mark.parametrize(
    "step", ["GET /api/models/user/model$", "repos/create", "validate-yaml", "preupload", "batch", "/commit/"]
)
@pytest.mark.parametrize(("status", "says"), [(401, "does not accept the token"), (403, "may not write to user/model")])
def test_refused_anywhere(hub, api, step, status, says):
    hub.faults = [Fault(step, 9, status)]
    assert says in error_of([Upload("user/model", FILES)], api)


def test_somebody_elses_repository(hub, api):
    hub.create("other/model")
    assert "the token may not write to other/model (403)" in error_of([Upload("other/model", FILES)], api)
    assert "the token may not write to other/new (403)" in error_of([Upload("other/new", FILES)], api)


def test_the_repository_disappears(hub, api):
    hub.faults = [Fault("preupload", 1, 404, {"X-Error-Code": "RepoNotFound"})]
    assert error_of([Upload("user/model", FILES)], api).startswith("the Hub has no user/model")


def test_created_by_somebody_else_at_the_same_time(hub, api):
    hub.faults = [Fault("GET /api/models/user/model$", 1, 404, {"X-Error-Code": "RepoNotFound"})]
    hub.create("user/model")
    push([Upload("user/model", FILES)], api)  # the Hub answers 409 to the creation
    assert hub.lines("repos/create")[0].status == 409
    assert hub.files("user/model") == FILES


@pytest.mark.parametrize(
    ("status", "says"), [(409, "is being changed at the same time"), (412, "was changed since it was compared")]
)
def test_changed_at_the_same_time(hub, api, status, says):
    hub.faults = [Fault("/commit/", 1, status)]
    assert says in error_of([Upload("user/model", FILES)], api)
    push([Upload("user/model", FILES)], api)
    assert hub.files("user/model") == FILES
    assert len(hub.lines("PUT /storage")) == 1


def test_a_bad_moment_of_the_storage_is_survived_by_the_client(hub, api, naps):
    hub.faults = [Fault("PUT /storage", 2, 503)]
    push([Upload("user/model", FILES)], api)
    assert hub.files("user/model") == FILES
    assert naps == [1, 2]


@pytest.mark.parametrize(
    "step", ["GET /api/models/user/model$", "repos/create", "preupload", "batch", "PUT /storage", "/commit/"]
)
@pytest.mark.parametrize(
    ("status", "says"), [(429, "has had too many requests (429) for user/model: wait"), (503, "fails (503) for user/model: ")]
)
def test_a_bad_moment_for_too_long(hub, api, naps, step, status, says):
    hub.faults = [Fault(step, 99, status, {"Retry-After": "7"})]
    message = error_of([Upload("user/model", FILES)], api)
    assert says in message and "run the same command again" in message
    hub.faults = []
    push([Upload("user/model", FILES)], api)
    assert hub.files("user/model") == FILES


def test_one_dropped_connection_is_survived(hub, api, naps):
    hub.faults = [Fault("PUT /storage", 1, after=50_000)]
    push([Upload("user/model", FILES)], api)
    assert hub.files("user/model") == FILES
    assert [seen.received for seen in hub.lines("PUT /storage")] == [50_000, len(WEIGHTS)]


def test_dropped_connections_then_resumed_with_only_what_is_missing(hub, api, naps):
    files = {**FILES, "onnx/model.onnx": WEIGHTS[:3000], "onnx-int8/model.onnx": WEIGHTS[:2000]}
    push([Upload("user/other", {"model.onnx": WEIGHTS[:3000]})], api)  # so one large file of three has arrived
    hub.faults = [Fault("PUT /storage", 99, after=1000)]
    message = error_of([Upload("user/first", {"a.txt": b"a"}), Upload("user/model", files)], api)
    assert "the connection to the Hub" in message
    assert "run the same command again" in message
    assert hub.files("user/first") == {"a.txt": b"a"}
    assert hub.files("user/model") == {}  # nothing half-written
    hub.faults, before = [], len(hub.seen)
    push([Upload("user/first", {"a.txt": b"a"}), Upload("user/model", files)], api)
    assert hub.files("user/model") == files
    again = [seen for seen in hub.seen[before:] if not seen.line.startswith("GET")]
    assert sorted(seen.received for seen in again if seen.line.startswith("PUT")) == [2000, len(WEIGHTS)]
    assert not [seen for seen in again if "user/first" in seen.line]


def test_several_large_files_and_too_many_requests(hub, api, naps):
    """The client sends them in threads, and wraps what went wrong there."""
    hub.faults = [Fault("PUT /storage", 99, 429, {"Retry-After": "7"})]
    files = {**FILES, "onnx/model.onnx": WEIGHTS[:3000]}
    assert "too many requests (429)" in error_of([Upload("user/model", files)], api)


def test_signatures_of_the_storage_are_not_shown():
    with pytest.raises(HubError) as caught, hub_errors.explained("user/model", "hf_right"):
        raise ConnectionError("Max retries exceeded with url: /repos/x?X-Amz-Signature=abc&y=1 (Caused by hf_right)")
    assert "url: /repos/x?... (Caused by ***)" in str(caught.value)


def test_a_local_file_that_cannot_be_read_is_no_matter_of_the_hub():
    with pytest.raises(FileNotFoundError, match="nowhere"), hub_errors.explained("user/model", None):
        Path("nowhere").read_bytes()


def test_unreachable(make_hub, tmp_path, monkeypatch):
    server = make_hub()
    api = connect()
    server.__exit__()
    message = error_of([Upload("user/model", FILES)], api)
    assert f"the connection to the Hub ({server.url}) failed for user/model" in message


def test_offline(hub, api, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    forget_connections()
    assert error_of([Upload("user/model", FILES)], api) == "user/model cannot be reached: HF_HUB_OFFLINE is set"


def test_what_answers_is_no_hub(hub, api):
    hub.faults = [Fault("validate-yaml", 1, 200)]
    assert "is no JSON: is HF_ENDPOINT" in error_of([Upload("user/model", FILES)], api)


def test_the_server_itself_is_strict(hub, api):
    """The tests above would pass with a server that takes anything."""
    with pytest.raises(HfHubHTTPError, match="401"):
        connect("hf_wrong").create_repo("user/model")
    hub.create("user/closed", private=True)
    with pytest.raises(RepositoryNotFoundError):
        HfApi(token=False).model_info("user/closed")
    hub.create("user/model")
    lost = CommitOperationAdd("model.safetensors", WEIGHTS)
    lost._upload_mode, lost._is_uploaded, lost._should_ignore = "lfs", True, False
    with pytest.raises(HfHubHTTPError, match="its content was not uploaded"):
        api.create_commit("user/model", [lost], commit_message="without content")
    with pytest.raises(HfHubHTTPError, match="412"):
        added = CommitOperationAdd("config.json", b"{}")
        api.create_commit("user/model", [added], commit_message="too late", parent_commit="0" * 40)
    with pytest.raises(ValueError, match="no metadata"):
        api.create_commit("user/model", [CommitOperationAdd("README.md", b"# Hi")], commit_message="no card")
