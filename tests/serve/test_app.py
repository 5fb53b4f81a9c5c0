"""Routes, the page's files, and the manifest for Kubernetes."""

from __future__ import annotations

import argparse
import re
import urllib.request
from pathlib import Path
from typing import Any

import openai
import yaml

import qa_jax
from qa_jax.cli import serve
from tests.serve.server import Running, running

ROOT = Path(__file__).parents[2]


def test_the_page_needs_no_other_host(server: Running) -> None:
    client = server.client(api_key="none").with_options(base_url=server.url)
    with urllib.request.urlopen(server.url) as response:
        assert "default-src 'none'" in response.headers["content-security-policy"]
        names = re.findall(r'(?:src|href)="(page/[^"]+)"', response.read().decode())
    assert len(names) >= 3
    for name in {*names, "page/recorder.js", "page/audio.js", "page/api.js"}:
        text = client.get(f"/{name}", cast_to=str)
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in text


def test_the_page_can_be_left_out(served_model: qa_jax.LoadedModel) -> None:
    with running(served_model, page=False) as bare:
        client = bare.client().with_options(base_url=bare.url)
        for path in ("/", "/page/app.js"):
            try:
                client.get(path, cast_to=str)
            except openai.NotFoundError:
                continue
            raise AssertionError(path)


def manifest() -> dict[str, Any]:
    documents = yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text())
    return {document["kind"]: document for document in documents}


def test_the_manifest_is_for_this_server(server: Running) -> None:
    (container,) = manifest()["Deployment"]["spec"]["template"]["spec"]["containers"]
    parser = argparse.ArgumentParser()
    serve.add_parser(parser.add_subparsers())
    given = parser.parse_args(container["args"])
    assert given.host == "0.0.0.0"
    assert container["ports"][0]["containerPort"] == given.port
    client = server.client().with_options(base_url=server.url)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert client.get(container[probe]["httpGet"]["path"], cast_to=str) == ""
    pod = manifest()["Deployment"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > given.request_seconds
    (metric,) = manifest()["HorizontalPodAutoscaler"]["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"].replace("vllm_", "vllm:")
    assert f"\n{name}{{" in client.get("/metrics", cast_to=str)
