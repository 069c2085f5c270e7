"""The hub's own client, against a local server that answers as the hub does."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from pit_jax.models.pit.config import PiTConfig
from pit_jax.weights.read import WeightFile

COMMIT = "0123456789abcdef0123456789abcdef01234567"

# Loads every source given to it, and prints the outcome of each.
PROGRAM = """
import json, sys
import numpy as np
import pit_jax
from pit_jax.weights.read import WeightFile, read

options = json.loads(sys.argv[1])
for source in sys.argv[2:]:
    try:
        model = pit_jax.create_model("pit_ti", weights=source, **options)
        file = read(source)
        found = [file.source, file.sha256, np.asarray(model.head.bias[...]).tolist()]
    except ValueError as error:
        found = [str(error)]
    print(json.dumps(found))
"""


@pytest.fixture
def hub() -> Iterator[tuple[str, dict[str, dict[str, bytes]]]]:
    """Address of a server, and its repositories: {"owner/name": {file name: content}}."""
    repositories: dict[str, dict[str, bytes]] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            owner, name, action, revision, file_name = self.path.lstrip("/").split("/", 4)
            files = repositories.get(f"{owner}/{name}")
            if files is None or action != "resolve":
                self.refuse("RepoNotFound")
            elif revision not in ("main", "v1", COMMIT):
                self.refuse("RevisionNotFound")
            elif file_name not in files:
                self.refuse("EntryNotFound")
            else:
                content = files[file_name]
                self.send_response(200)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("Content-Length", str(len(content)))
                if name == "cut_short":
                    self.send_header("X-Linked-Size", str(len(content) + 1))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

        def refuse(self, code: str) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Drops the log of requests."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", repositories
    server.shutdown()
    thread.join()
    server.server_close()


def load_all(
    sources: list[str], options: dict[str, Any], settings: dict[str, str]
) -> list[list[Any]]:
    """Loads the sources in a program of its own, under these environment variables."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(options), *sources],
        env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_models_load_from_the_hub(
    hub: tuple[str, dict[str, dict[str, bytes]]],
    tiny: PiTConfig,
    tiny_options: dict[str, Any],
    memory_file: Callable[..., WeightFile],
    tmp_path: Path,
) -> None:
    endpoint, repositories = hub
    tensors = memory_file(tiny, "timm").tensors
    content = safetensors.numpy.save(tensors)
    torch.save({name: torch.from_numpy(-tensors[name]) for name in tensors}, tmp_path / "old.bin")
    repositories["timm/pit_ti_224.in1k"] = {"model.safetensors": content, "README.md": b"# PiT"}
    repositories["timm/old"] = {"pytorch_model.bin": (tmp_path / "old.bin").read_bytes()}
    repositories["timm/cut_short"] = repositories["timm/pit_ti_224.in1k"]
    repositories["timm/empty"] = {"README.md": b"# nothing"}

    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache")}
    newest, tagged, old, *errors = load_all(
        [
            "hf:timm/pit_ti_224.in1k",
            "hf:timm/pit_ti_224.in1k@v1",
            "hf:timm/old",
            "hf:timm/pit_ti_224.in1k@v2",
            "hf:timm/pit_tii",
            "hf:timm/empty",
            "hf:three/part/name",
            "hf:timm/cut_short",
        ],
        tiny_options,
        settings,
    )
    bias = tensors["head.bias"].tolist()
    sha256 = hashlib.sha256(content).hexdigest()
    assert newest == tagged == [f"hf:timm/pit_ti_224.in1k@{COMMIT}", sha256, bias]
    assert old[0] == f"hf:timm/old@{COMMIT}"
    np.testing.assert_array_equal(old[2], -tensors["head.bias"])
    assert errors.pop()[0].startswith("hf:timm/cut_short: the download failed: Consistency check")
    assert errors == [
        ["hf:timm/pit_ti_224.in1k@v2: timm/pit_ti_224.in1k has no revision 'v2'"],
        [
            "hf:timm/pit_tii: the hub has no repository 'timm/pit_tii', or it is private and "
            "HF_TOKEN does not open it"
        ],
        ["hf:timm/empty: found none of model.safetensors, pytorch_model.bin in the repository"],
        ["hf:three/part/name: expected hf:owner/name or hf:owner/name@revision"],
    ]

    # Downloaded files stay in the client's cache; others are reported as out of reach.
    cached, absent = load_all(
        ["hf:timm/pit_ti_224.in1k", "hf:timm/pit_xs_224.in1k"],
        tiny_options,
        {**settings, "HF_HUB_OFFLINE": "1"},
    )
    assert cached == newest
    assert absent[0].startswith("hf:timm/pit_xs_224.in1k: the hub cannot be reached and model.saf")
