"""A local server that speaks as much of the Hugging Face Hub's protocol as the real clients need.

Held in memory: repositories with commits, branches (only main), tags, Git LFS uploads and a Space's variables; and
collections. Faults can
be put in: a status for a request, or a connection that is cut in the middle of a file.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.local_server import listening

LFS = (".parquet", ".safetensors", ".png")
PLURAL = {"models": "model", "datasets": "dataset", "spaces": "space"}
DATE = "2026-01-01T00:00:00.000Z"
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


@dataclass
class Fault:
    """A request that goes wrong.

    Attributes:
        method: of the request; path: pattern that is searched for in its path.
        status: answered instead; or None with `cut`: so many bytes of the body are sent, then the connection is closed.
        times: how often.
    """

    method: str
    path: str
    status: int | None = None
    cut: int | None = None
    times: int = 1


@dataclass
class Repo:
    """A repository: its commits in order, each with all its files."""

    private: bool = False
    sdk: str | None = None
    gated: bool = False
    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)  # sha, message, files
    tags: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)

    def commit(self, message: str, files: dict[str, bytes]) -> str:
        parent = self.commits[-1][0] if self.commits else ""
        parts = [parent, *(f"{name} {hashlib.sha1(data).hexdigest()}" for name, data in sorted(files.items()))]
        sha = hashlib.sha1("\n".join(parts).encode()).hexdigest()
        self.commits.append((sha, message, files))
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        wanted = self.commits[-1][0] if revision == "main" else self.tags.get(revision, revision)
        return next(((sha, files) for sha, _, files in self.commits if sha == wanted), None)


class Hub:
    """What is stored and what was asked for."""

    def __init__(self, token: str, cache: Path) -> None:
        self.token, self.cache = token, cache
        self.url = ""
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}  # LFS, by sha256
        self.collections: dict[str, dict[str, Any]] = {}  # by slug
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.before_commit: Callable[[Repo], object] | None = None  # what somebody else does meanwhile
        self.lock = threading.Lock()

    def clear(self) -> None:
        """As it was at the start, at the same address."""
        self.repos, self.objects, self.collections = {}, {}, {}
        self.faults, self.requests, self.before_commit = [], [], None

    def files(self, repo_type: str, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        found = self.repos[repo_type, repo_id].at(revision)
        assert found is not None
        return found[1]

    def n_commits(self) -> int:
        return sum(len(repo.commits) for repo in self.repos.values())

    def environment(self, cache: str = "cache", token: str | None = None) -> dict[str, str]:
        """Variables for a process of its own: this server, an empty cache, no telemetry."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(self.cache / cache),
            "HF_TOKEN": self.token if token is None else token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None


def git_oid(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Refused(Exception):
    """An error of the protocol."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        split = urlsplit(self.path)
        path, query = unquote(split.path), parse_qs(split.query)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        self.hub.requests.append((self.command, path))
        fault = self.hub.fault_for(self.command, path)
        try:
            if fault is not None and fault.status is not None:
                raise Refused(fault.status, message="put in by the test")
            for method, pattern, answer in ROUTES:
                if (match := re.fullmatch(pattern, path)) and self.command in method.split("|"):
                    answer(self, body, query, *match.groups())
                    return
            raise Refused(404, "EntryNotFound", f"no route {self.command} {path}")
        except Refused as error:
            headers = {"X-Error-Code": error.code} if error.code else {}
            headers["X-Error-Message"] = error.message or f"status {error.status}"
            self._send(error.status, json.dumps({"error": headers["X-Error-Message"]}).encode(), headers)

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        known = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
        for name, value in known.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode())

    @property
    def _authorised(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _writer(self) -> None:
        if not self._authorised:
            raise Refused(401, message="Invalid username or password.")

    def _repo(self, kind: str, repo_id: str) -> Repo:
        repo = self.hub.repos.get((PLURAL.get(kind, kind), repo_id))
        if repo is None or (repo.private and not self._authorised):
            raise Refused(401 if repo is None and not self._authorised else 404, "RepoNotFound", "Repository not found")
        return repo

    def _at(self, repo: Repo, revision: str) -> tuple[str, dict[str, bytes]]:
        found = repo.at(revision)
        if found is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    # ---- what is asked ----

    def whoami(self, body: bytes, query: dict[str, list[str]]) -> None:
        self._writer()
        self._json({"name": "me", "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def create(self, body: bytes, query: dict[str, list[str]]) -> None:
        self._writer()
        asked = json.loads(body)
        repo_id = f"{asked.get('organization') or 'me'}/{asked['name']}"
        key = (asked.get("type") or "model", repo_id)
        place = {"model": "", "dataset": "datasets/", "space": "spaces/"}[key[0]]
        url = {"url": f"{self.hub.url}/{place}{repo_id}", "name": repo_id}
        if key in self.hub.repos:
            self._json({**url, "error": "You already created this repo"}, 409)
            return
        self.hub.repos[key] = repo = Repo(
            bool(asked.get("private")) or asked.get("visibility") == "private", asked.get("sdk")
        )
        repo.commit("initial commit", {".gitattributes": ATTRIBUTES})
        self._json(url)

    def validate_yaml(self, body: bytes, query: dict[str, list[str]]) -> None:
        self._json({"errors": [], "warnings": []})

    def preupload(self, body: bytes, query: dict[str, list[str]], kind: str, repo_id: str, revision: str) -> None:
        self._writer()
        _, files = self._at(self._repo(kind, repo_id), revision)
        answers = []
        for asked in json.loads(body)["files"]:
            name = asked["path"]
            lfs = name.endswith(LFS)
            known = files.get(name)
            oid = None if known is None else sha256(known) if lfs else git_oid(known)
            answers.append({"path": name, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid})
        self._json({"files": answers})

    def lfs_batch(self, body: bytes, query: dict[str, list[str]], place: str | None, repo_id: str) -> None:
        self._writer()
        objects = []
        for asked in json.loads(body)["objects"]:
            answer: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.objects:
                href = f"{self.hub.url}/lfs/{asked['oid']}"
                answer["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    def lfs_put(self, body: bytes, query: dict[str, list[str]], oid: str) -> None:
        if sha256(body) != oid:
            raise Refused(400, message="not the bytes that were announced")
        self.hub.objects[oid] = body
        self._json({})

    def lfs_verify(self, body: bytes, query: dict[str, list[str]], oid: str) -> None:
        self._json({}, 200 if oid in self.hub.objects else 404)

    def commit(self, body: bytes, query: dict[str, list[str]], kind: str, repo_id: str, revision: str) -> None:
        self._writer()
        repo = self._repo(kind, repo_id)
        if self.hub.before_commit is not None:
            self.hub.before_commit(repo)
        head, files = self._at(repo, revision)
        files, message = dict(files), ""
        for line in body.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, head):
                    raise Refused(412, message="A commit has happened since. Please refresh and try again.")
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                files.pop(value["path"], None)
        sha = repo.commit(message, files)
        self._json({"commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}", "commitOid": sha, "success": True})

    def info(
        self, body: bytes, query: dict[str, list[str]], kind: str, repo_id: str, revision: str | None = None
    ) -> None:
        repo = self._repo(kind, repo_id)
        sha, files = self._at(repo, revision or "main")
        self._json(
            {
                "id": repo_id,
                "modelId": repo_id,
                "author": repo_id.split("/")[0],
                "sha": sha,
                "lastModified": DATE,
                "createdAt": DATE,
                "private": repo.private,
                "disabled": False,
                "gated": "manual" if repo.gated else False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": [
                    {"rfilename": name, **({"size": len(files[name])} if "blobs" in query else {})}
                    for name in sorted(files)
                ],
            }
        )

    def _entry(self, name: str, data: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": git_oid(data)}
        if name.endswith(LFS):
            entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 130}
        return entry

    def tree(
        self, body: bytes, query: dict[str, list[str]], kind: str, repo_id: str, revision: str, folder: str | None
    ) -> None:
        _, files = self._at(self._repo(kind, repo_id), revision)
        prefix = f"{folder.strip('/')}/" if folder and folder.strip("/") else ""
        inside = {name: data for name, data in sorted(files.items()) if name.startswith(prefix)}
        if prefix and not inside:
            raise Refused(404, "EntryNotFound", f"no folder {folder}")
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        found: dict[str, dict[str, Any]] = {}
        for name, data in inside.items():
            parts = name[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                place = prefix + "/".join(parts[:depth])
                found[place] = {"type": "directory", "path": place, "size": 0, "oid": git_oid(place.encode())}
            if recursive or len(parts) == 1:
                found[name] = self._entry(name, data)
        self._json(list(found.values()))

    def paths_info(self, body: bytes, query: dict[str, list[str]], kind: str, repo_id: str, revision: str) -> None:
        _, files = self._at(self._repo(kind, repo_id), revision)
        if "json" in (self.headers.get("Content-Type") or ""):
            paths = json.loads(body)["paths"]
        else:
            paths = parse_qs(body.decode()).get("paths", [])
        found = []
        for name in paths:
            if name in files:
                found.append(self._entry(name, files[name]))
            elif any(f.startswith(f"{name}/") for f in files):
                found.append({"type": "directory", "path": name, "size": 0, "oid": git_oid(name.encode())})
        self._json(found)

    def refs(self, body: bytes, query: dict[str, list[str]], kind: str, repo_id: str) -> None:
        repo = self._repo(kind, repo_id)
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.commits[-1][0]}
        tags = [{"name": t, "ref": f"refs/tags/{t}", "targetCommit": sha} for t, sha in repo.tags.items()]
        self._json({"branches": [main], "tags": tags, "converts": [], "pullRequests": []})

    def tag(self, body: bytes, query: dict[str, list[str]], kind: str, repo_id: str, revision: str) -> None:
        self._writer()
        repo = self._repo(kind, repo_id)
        name = json.loads(body)["tag"]
        if name in repo.tags:
            raise Refused(409, message=f"Reference already exists: {name}")
        repo.tags[name] = self._at(repo, revision)[0]
        self._json({}, 201)

    def variables(self, body: bytes, query: dict[str, list[str]], repo_id: str) -> None:
        repo = self._repo("spaces", repo_id)
        self._writer()
        if self.command == "POST":
            asked = json.loads(body)
            repo.variables[asked["key"]] = asked["value"]
        if self.command == "DELETE":
            del repo.variables[json.loads(body)["key"]]
        self._json({k: {"key": k, "value": v, "updatedAt": DATE} for k, v in repo.variables.items()})

    def create_collection(self, body: bytes, query: dict[str, list[str]]) -> None:
        self._writer()
        asked = json.loads(body)
        slug = f"{asked['namespace']}/{re.sub('[^a-z]+', '-', asked['title'].lower())}-{'0' * 24}"
        if slug in self.hub.collections:
            self._json({"slug": slug, "error": "This collection already exists"}, 409)
            return
        self.hub.collections[slug] = {
            "slug": slug, "title": asked["title"], "description": asked.get("description"), "items": [],
            "owner": {"name": asked["namespace"]}, "lastUpdated": DATE, "position": 0, "theme": "green", "upvotes": 0,
            "private": asked["private"],
        }  # fmt: skip
        self._json(self.hub.collections[slug])

    def collection(self, body: bytes, query: dict[str, list[str]], slug: str) -> None:
        if slug not in self.hub.collections:
            raise Refused(404, message="Collection not found")
        self._json(self.hub.collections[slug])

    def add_to_collection(self, body: bytes, query: dict[str, list[str]], slug: str) -> None:
        self._writer()
        found, asked = self.hub.collections[slug]["items"], json.loads(body)
        self._repo(f"{asked['item']['type']}s", asked["item"]["id"])  # there must be such a repository
        note = {"text": asked["note"]} if "note" in asked else None
        found.append({"_id": str(len(found)), **asked["item"], "position": len(found), "note": note})
        self._json(self.hub.collections[slug])

    def resolve(
        self, body: bytes, query: dict[str, list[str]], place: str | None, repo_id: str, revision: str, name: str
    ) -> None:
        repo = self._repo((place or "models/").rstrip("/"), repo_id)
        sha, files = self._at(repo, revision)
        if name not in files:
            raise Refused(404, "EntryNotFound", f"no file {name}")
        data = files[name]
        etag = sha256(data) if name.endswith(LFS) else git_oid(data)
        headers = {
            "X-Repo-Commit": sha,
            "ETag": f'"{etag}"',
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        if name.endswith(LFS):
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
        status = 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, stop = int(asked[1]), int(asked[2] or len(data) - 1) + 1
            if start >= len(data):
                raise Refused(416, message="nothing there")
            headers["Content-Range"] = f"bytes {start}-{min(stop, len(data)) - 1}/{len(data)}"
            data, status = data[start:stop], 206
        cut = self.hub.fault_for("CUT", self.path) if self.command == "GET" else None
        self._send(status, data, headers, None if cut is None else cut.cut)


KIND, ID = r"/api/(models|datasets|spaces)", r"/([^/]+/[^/]+)"
ROUTES: list[tuple[str, str, Any]] = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate_yaml),
    ("POST", rf"{KIND}{ID}/preupload/([^/]+)", Handler.preupload),
    ("POST", rf"{KIND}{ID}/commit/([^/]+)", Handler.commit),
    ("POST", rf"{KIND}{ID}/paths-info/([^/]+)", Handler.paths_info),
    ("POST", rf"{KIND}{ID}/tag/([^/]+)", Handler.tag),
    ("GET", rf"{KIND}{ID}/refs", Handler.refs),
    ("GET", rf"{KIND}{ID}/tree/([^/]+)(/.*)?", Handler.tree),
    ("GET|POST|DELETE", rf"/api/spaces{ID}/variables", Handler.variables),
    ("POST", r"/api/collections", Handler.create_collection),
    ("GET", rf"/api/collections{ID}", Handler.collection),
    ("POST", rf"/api/collections{ID}/items", Handler.add_to_collection),
    ("GET", rf"{KIND}{ID}", Handler.info),
    ("GET", rf"{KIND}{ID}/revision/([^/]+)", Handler.info),
    ("POST", r"/(datasets/|spaces/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/lfs/([0-9a-f]+)", Handler.lfs_put),
    ("POST", r"/lfs/([0-9a-f]+)/verify", Handler.lfs_verify),
    ("GET|HEAD", r"/(datasets/|spaces/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", Handler.resolve),
]  # fmt: skip


@contextmanager
def serving_hub(cache: Path, token: str = "hf_test") -> Iterator[Hub]:
    """Serve an empty Hub on a free port; `cache` is where clients keep what they download."""
    hub = Hub(token, cache)

    with listening(type("Bound", (Handler,), {"hub": hub})) as hub.url:
        yield hub
