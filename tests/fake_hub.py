"""A Hugging Face Hub on this machine: what huggingface_hub asks of it, and nothing else."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

TOKEN = "hf_never_to_be_shown"


def commit_of(files):
    """The hash of a commit follows from its files."""
    text = "".join(f"{n}{hashlib.sha1(c).hexdigest()}" for n, c in sorted(files.items()))
    return hashlib.sha1(text.encode()).hexdigest()


class FakeHub:
    """Repositories by name, each with its commits, the newest last.

    Arguments:
        url: of the server
        repositories: name -> list of {path: content}
        private: names of those that need the token
        cut: path -> bytes after which its next download breaks off
        altered: path -> other content that is sent in its place
        asked: method, path and range of all requests
    """

    def __init__(self, url):
        self.url, self.repositories, self.private = url, {}, set()
        self.cut, self.altered, self.asked = {}, {}, []

    def commit(self, name, files):
        """A new commit; returns its hash."""
        self.repositories.setdefault(name, []).append(dict(files))
        return commit_of(files)

    def revision(self, name, revision):
        """The files of a revision, or None."""
        commits = self.repositories[name]
        if revision == "main":
            return commits[-1]
        return next((files for files in commits if commit_of(files) == revision), None)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, content=b"", status=200, **headers):
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {"Content_Type": "application/json"}
        self.send_response(status)
        headers = {"Content_Length": str(len(content))} | headers
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def fault(self, status, code):
        self.answer(b"", status, X_Error_Code=code)

    def handle_request(self):
        hub = self.server.hub
        hub.asked.append((self.command, self.path, self.headers.get("Range")))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            return self.create(hub, json.loads(body), known)
        if path == "/api/validate-yaml":
            return self.answer({"warnings": [], "errors": []})
        found = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+)(?:/(.*))?", path)
        name = found[1] if found else ""
        if name not in hub.repositories or (name in hub.private and not known):
            return self.fault(404 if known else 401, "RepoNotFound")
        what, _, rest = (found[2] or "revision/main").partition("/")
        if what in ("preupload", "commit"):
            return self.write(hub, name, what, body) if known else self.fault(403, "Forbidden")
        revision, _, file = rest.partition("/")
        files = hub.revision(name, revision or "main")
        if files is None:
            return self.fault(404, "RevisionNotFound")
        if what == "resolve":
            return self.send_file(hub, files, file)
        return self.answer(listing(name, files) if what == "revision" else tree(files))

    do_GET = do_HEAD = do_POST = handle_request

    def create(self, hub, asked, known):
        if not known:
            return self.fault(401, "Unauthorized")
        name = f"{asked['organization']}/{asked['name']}"
        url = f"{hub.url}/{name}"
        if name in hub.repositories:
            return self.answer({"url": url}, 409)
        hub.repositories[name] = [{}]
        if asked.get("visibility") == "private":
            hub.private.add(name)
        return self.answer({"url": url})

    def write(self, hub, name, what, body):
        if what == "preupload":
            files = json.loads(body)["files"]
            plan = [{"path": f["path"], "uploadMode": "regular"} for f in files]
            return self.answer({"files": [{**f, "shouldIgnore": False} for f in plan]})
        lines = [json.loads(line) for line in body.splitlines()]
        added = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        oid = hub.commit(name, hub.repositories[name][-1] | added)
        url = f"{hub.url}/{name}/commit/{oid}"
        return self.answer({"commitUrl": url, "commitOid": oid, "success": True})

    def send_file(self, hub, files, file):
        if file not in files:
            return self.fault(404, "EntryNotFound")
        content = hub.altered.get(file, files[file])
        start = int(re.findall(r"\d+", self.headers.get("Range") or "0")[0])
        headers = {"ETag": f'"{hashlib.sha256(files[file]).hexdigest()}"'}
        headers |= {"X_Repo_Commit": commit_of(files), "Accept_Ranges": "bytes"}
        if self.command == "GET" and file in hub.cut:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: hub.cut.pop(file)])
            self.close_connection = True
            return None
        if start:
            total = len(content)
            headers["Content_Range"] = f"bytes {start}-{total - 1}/{total}"
            return self.answer(content[start:], 206, **headers)
        return self.answer(content, **headers)


def listing(name, files):
    """A model as the hub describes it."""
    siblings = [{"rfilename": n, **size_of(n, c)} for n, c in files.items()]
    found = {"id": name, "sha": commit_of(files), "siblings": siblings, "private": False}
    header = re.match(r"---\n(.*?)\n---", files.get("README.md", b"").decode(), re.S)
    return found | ({"cardData": yaml.safe_load(header[1])} if header else {})


def tree(files):
    return [{"type": "file", "path": n, "oid": "0" * 40, "size": len(c)} for n, c in files.items()]


def size_of(name, content):
    size = {"size": len(content), "blobId": "0" * 40}
    if name.endswith(".safetensors"):  # large files have a SHA-256
        digest = hashlib.sha256(content).hexdigest()
        size["lfs"] = {"size": len(content), "sha256": digest, "pointerSize": 128}
    return size


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub without repositories, to which this machine has logged in; its cache is empty."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_port}"
    server.hub = FakeHub(url)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server.hub
    server.shutdown()
    server.server_close()
    thread.join()
