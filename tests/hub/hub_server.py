"""A small server on 127.0.0.1 that speaks as much of the Hub's HTTP API as pushing and loading models takes.

It keeps repositories in memory and large files in a folder, checks tokens, and can be told to fail.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE = (".safetensors", ".onnx", ".onnx_data", ".bin")
LONGEST_BODY = 64 * 2**20
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


@dataclass
class Commit:
    """Path -> content; of a large file its `sha256:` reference."""

    oid: str
    files: dict
    parent: "Commit | None"


@dataclass
class Repository:
    """Branches of commits."""

    private: bool
    branches: dict = field(default_factory=dict)


@dataclass
class Fault:
    """What happens to the next `times` requests whose "METHOD /path" fits `pattern`.

    `status` is answered, with `headers` (200: with a page that is no answer); or, without a status, the connection is dropped
    after `after` bytes of the body.
    """

    pattern: str
    times: int = 1
    status: int | None = None
    headers: dict = field(default_factory=dict)
    after: int = 0


@dataclass
class Seen:
    """A request: "METHOD /path", its answer's status (0: dropped), and bytes of body that came."""

    line: str
    status: int
    received: int


class HubServer:
    """The server, running in a thread as long as the context lasts.

    Args:
        folder: for large files.
        tokens: token -> user who may write.
        part_size: large files above this many bytes are uploaded in parts of this size.
        page_size: entries of a tree per page.
    """

    def __init__(self, folder: Path, tokens=None, part_size: int = 2**30, page_size: int = 100):
        self.folder = folder
        self.tokens = {"hf_right": "user"} if tokens is None else tokens
        self.part_size, self.page_size = part_size, page_size
        self.repositories: dict[str, Repository] = {}
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.http.shutdown()
        self.http.server_close()

    def lines(self, pattern: str) -> list[Seen]:
        """The requests so far that fit a pattern."""
        return [seen for seen in self.seen if re.search(pattern, seen.line)]

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """What a branch holds."""
        files = self.repositories[repo_id].branches[revision].files
        return {path: self.content(value) for path, value in files.items() if path != ".gitattributes"}

    def content(self, value: bytes | str) -> bytes:
        """The content behind a reference."""
        return value if isinstance(value, bytes) else (self.folder / value.removeprefix("sha256:")).read_bytes()

    def commits(self, repo_id: str, revision: str = "main") -> list[Commit]:
        """Of a branch, the newest first."""
        found, commit = [], self.repositories[repo_id].branches[revision]
        while commit is not None:
            found.append(commit)
            commit = commit.parent
        return found

    def create(self, repo_id: str, files=None, private: bool = False) -> None:
        """Make a repository, as the Hub does with one first commit, and perhaps another with files."""
        repository = self.repositories[repo_id] = Repository(private)
        repository.branches["main"] = _commit({".gitattributes": ATTRIBUTES}, None)
        if files:
            repository.branches["main"] = _commit({".gitattributes": ATTRIBUTES, **files}, repository.branches["main"])


def _commit(files: dict, parent: Commit | None) -> Commit:
    digest = hashlib.sha1(repr((sorted(files.items()), parent and parent.oid)).encode())
    return Commit(digest.hexdigest(), files, parent)


def blob_oid(content: bytes) -> str:
    """Git's name of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Refusal(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, **headers):
        super().__init__(message)
        self.status = status
        self.headers = {**headers, "X-Error-Message": message, **({"X-Error-Code": code} if code else {})}


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    timeout = 20
    wbufsize = -1  # headers and body in one packet: else each answer waits for an acknowledgement
    disable_nagle_algorithm = True

    def log_message(self, *arguments):
        """Be quiet."""

    def do(self) -> None:
        self.received = 0
        self.path, self.query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        line = f"{self.command} {unquote(self.path)}"
        with self.hub.lock:
            fault = next((one for one in self.hub.faults if one.times and re.search(one.pattern, line)), None)
            if fault is not None:
                fault.times -= 1
        if fault is not None and fault.status is None:
            self.received = len(self.rfile.read(fault.after))
            self.hub.seen.append(Seen(line, 0, self.received))
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        body = self.read_body()
        try:
            if fault is not None and fault.status == 200:
                status, content, headers = 200, b"<html>Welcome to this hotel's network</html>", {}
            elif fault is not None:
                raise _Refusal(fault.status, f"told to fail, {self.headers.get('Authorization')}", **fault.headers)
            else:
                status, content, headers = self.answer(line, body)
        except _Refusal as refusal:
            status, headers = refusal.status, refusal.headers
            content = json.dumps({"error": str(refusal)}).encode()
        self.hub.seen.append(Seen(line, status, self.received))
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_HEAD = do

    def read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(parts)
        else:
            length = int(self.headers.get("Content-Length") or 0)
            assert length <= LONGEST_BODY
            body = self.rfile.read(length)
        self.received = len(body)
        return body

    def answer(self, line: str, body: bytes):
        for pattern, name in _ROUTES:
            if match := re.fullmatch(pattern, line):
                result = getattr(self, name)(body, *match.groups())
                return result if isinstance(result, tuple) else (200, json.dumps(result).encode(), {})
        raise _Refusal(404, f"no such page: {line}")

    # --- who may what -------------------------------------------------------------------------------------------------

    def user(self) -> str:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.hub.tokens:
            raise _Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.tokens[token]

    def repository(self, repo_id: str, write: bool = False) -> Repository:
        if self.headers.get("Authorization") or write:
            user = self.user()
            if write and not repo_id.startswith(f"{user}/"):
                raise _Refusal(403, "Forbidden: you may not write here")
        found = self.hub.repositories.get(repo_id)
        if found is None or (found.private and not self.headers.get("Authorization")):
            raise _Refusal(404 if self.headers.get("Authorization") else 401, "Repository not found", "RepoNotFound")
        return found

    def commit_of(self, repo_id: str, revision: str) -> Commit:
        branches = self.repository(repo_id).branches
        if revision in branches:
            return branches[revision]
        for name in branches:
            for commit in self.hub.commits(repo_id, name):
                if commit.oid == revision:
                    return commit
        raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    # --- the API ------------------------------------------------------------------------------------------------------

    def whoami(self, body):
        return {"type": "user", "name": self.user(), "orgs": [], "auth": {"type": "access_token"}}

    def create(self, body):
        asked = json.loads(body)
        repo_id = f"{asked.get('organization') or self.user()}/{asked['name']}"
        if not repo_id.startswith(f"{self.user()}/"):
            raise _Refusal(403, "Forbidden: you may not create here")
        url = f"{self.hub.url}/{repo_id}"
        if repo_id in self.hub.repositories:
            return 409, json.dumps({"error": "You already created this model repo", "url": url}).encode(), {}
        self.hub.create(repo_id, private=asked.get("private") is True or asked.get("visibility") == "private")
        return {"url": url, "name": repo_id}

    def info(self, body, repo_id, revision=None):
        commit = self.commit_of(repo_id, revision or "main")
        siblings = [{"rfilename": path} for path in commit.files]
        private = self.repository(repo_id).private
        return {
            "_id": "1",
            "id": repo_id,
            "modelId": repo_id,
            "sha": commit.oid,
            "private": private,
            "siblings": siblings,
            "tags": [],
        }

    def tree(self, body, repo_id, revision, folder=None):
        commit = self.commit_of(repo_id, revision)
        prefix = f"{folder}/" if folder else ""
        paths = sorted(path for path in commit.files if path.startswith(prefix))
        if folder and not paths:
            raise _Refusal(404, f"{folder} does not exist", "EntryNotFound")
        if "recursive" not in self.query or self.query["recursive"][0].lower() != "true":
            paths = [path for path in paths if "/" not in path.removeprefix(prefix)]
        start = int(self.query.get("cursor", ["0"])[0])
        page = [self.entry(path, commit.files[path]) for path in paths[start : start + self.hub.page_size]]
        headers = {}
        if start + self.hub.page_size < len(paths):
            cursor = start + self.hub.page_size
            headers["Link"] = f'<{self.hub.url}{self.path}?recursive=True&cursor={cursor}>; rel="next"'
        return 200, json.dumps(page).encode(), headers

    def entry(self, path: str, value: bytes | str) -> dict:
        content = self.hub.content(value)
        entry = {"type": "file", "path": path, "size": len(content), "oid": blob_oid(content)}
        if isinstance(value, str):
            oid = value.removeprefix("sha256:")
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n".encode()
            entry |= {"oid": blob_oid(pointer), "lfs": {"oid": oid, "size": len(content), "pointerSize": len(pointer)}}
        return entry

    def list_commits(self, body, repo_id, revision):
        self.commit_of(repo_id, revision)
        date = "2025-01-01T00:00:00.000Z"
        return [
            {"id": commit.oid, "title": "", "message": "", "authors": [], "date": date}
            for commit in self.hub.commits(repo_id, revision)
        ]

    def branch(self, body, repo_id, name):
        branches = self.repository(repo_id, write=True).branches
        if name in branches:
            raise _Refusal(409, "Reference already exists")
        branches[name] = self.commit_of(repo_id, json.loads(body or b"{}").get("startingPoint") or "main")
        return {}

    def validate_yaml(self, body):
        text = json.loads(body)["content"]
        found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        errors = [] if found and isinstance(yaml.safe_load(found[1]), dict) else [{"message": "no metadata"}]
        return (400 if errors else 200), json.dumps({"errors": errors, "warnings": []}).encode(), {}

    def preupload(self, body, repo_id, revision):
        self.repository(repo_id, write=True)
        files = self.commit_of(repo_id, revision).files
        answers = []
        for asked in json.loads(body)["files"]:
            mode = "lfs" if asked["path"].endswith(LARGE) else "regular"
            there = files.get(asked["path"])
            oid = None if there is None else there.removeprefix("sha256:") if isinstance(there, str) else blob_oid(there)
            answers.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    def batch(self, body, repo_id):
        self.repository(repo_id, write=True)
        asked = json.loads(body)
        return {"transfer": "basic", "objects": [self.upload_of(one["oid"], one["size"]) for one in asked["objects"]]}

    def upload_of(self, oid: str, size: int) -> dict:
        if (self.hub.folder / oid).exists():
            return {"oid": oid, "size": size}
        href, header = f"{self.hub.url}/storage/{oid}", {}
        if size > self.hub.part_size:
            parts = range(1, -(-size // self.hub.part_size) + 1)
            header = {"chunk_size": str(self.hub.part_size), **{str(part): f"{href}/{part}" for part in parts}}
            href += "/complete"
        verify = {"href": f"{self.hub.url}/storage/{oid}/verify"}
        return {"oid": oid, "size": size, "actions": {"upload": {"href": href, "header": header}, "verify": verify}}

    def store(self, body, oid, part=None):
        name = oid if part is None else f"{oid}.{part}"
        if part is None and hashlib.sha256(body).hexdigest() != oid:
            raise _Refusal(400, "the content is not what its name says")
        (self.hub.folder / name).write_bytes(body)
        return 200, b"", {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}

    def complete(self, body, oid):
        parts = [self.hub.folder / f"{oid}.{one['partNumber']}" for one in json.loads(body)["parts"]]
        return self.store(b"".join(part.read_bytes() for part in parts), oid)

    def verify(self, body, oid):
        if (self.hub.folder / oid).stat().st_size != json.loads(body)["size"]:
            raise _Refusal(400, "wrong size")
        return {}

    def commit(self, body, repo_id, revision):
        branches = self.repository(repo_id, write=True).branches
        parent = self.commit_of(repo_id, revision)
        files = dict(parent.files)
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header" and value.get("parentCommit") not in (None, parent.oid):
                raise _Refusal(412, "A commit has happened since. Please refresh and try again.")
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if not (self.hub.folder / value["oid"]).exists():
                    raise _Refusal(400, f"{value['path']}: its content was not uploaded")
                files[value["path"]] = f"sha256:{value['oid']}"
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        with self.hub.lock:
            branches[revision] = _commit(files, parent)
        oid = branches[revision].oid
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{oid}", "hookOutput": ""}

    def resolve(self, body, repo_id, revision, path):
        commit = self.commit_of(repo_id, revision)
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            raise _Refusal(404, "Entry not found", "EntryNotFound", **headers)
        value = commit.files[path]
        content = self.hub.content(value)
        etag = value.removeprefix("sha256:") if isinstance(value, str) else blob_oid(content)
        headers |= {"ETag": f'"{etag}"', "X-Linked-Etag": f'"{etag}"', "X-Linked-Size": len(content)}
        return 200, content, headers


_ID = r"([\w.-]+/[\w.-]+)"
_ROUTES = [
    (r"GET /api/whoami-v2", "whoami"),
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate_yaml"),
    (rf"GET /api/models/{_ID}", "info"),
    (rf"GET /api/models/{_ID}/revision/([^/]+)", "info"),
    (rf"GET /api/models/{_ID}/tree/([^/]+)", "tree"),
    (rf"GET /api/models/{_ID}/tree/([^/]+)/(.+)", "tree"),
    (rf"GET /api/models/{_ID}/commits/([^/]+)", "list_commits"),
    (rf"POST /api/models/{_ID}/branch/([^/]+)", "branch"),
    (rf"POST /api/models/{_ID}/preupload/([^/]+)", "preupload"),
    (rf"POST /api/models/{_ID}/commit/([^/]+)", "commit"),
    (rf"POST /{_ID}\.git/info/lfs/objects/batch", "batch"),
    (r"PUT /storage/(\w+)", "store"),
    (r"PUT /storage/(\w+)/(\d+)", "store"),
    (r"POST /storage/(\w+)/complete", "complete"),
    (r"POST /storage/(\w+)/verify", "verify"),
    (rf"(?:GET|HEAD) /{_ID}/resolve/([^/]+)/(.+)", "resolve"),
]


def forget_connections() -> None:
    """The client keeps its connections, and whether it is offline with them."""
    from huggingface_hub import utils

    if hasattr(utils, "reset_sessions"):  # 0.x
        utils.reset_sessions()
    else:
        utils.close_session()
