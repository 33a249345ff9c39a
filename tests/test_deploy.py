"""The deployment's files name real flags, settings, paths and ports, and agree with each other."""

from __future__ import annotations

import json
import re
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from examples.deploy import upstream
from mmguard.cli import app as commands
from mmguard.server.app import make_app
from mmguard.server.settings import DATABASE, Settings, load_settings
from tests.loopback import served
from tests.upstream import write_policy

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples/deploy"
DOCKERFILE = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
SIDE = (FOLDER / "side.yaml").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
OBJECTS = {
    found["kind"]: found
    for found in yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text(encoding="utf-8"))
}
POD = OBJECTS["Deployment"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
SETTINGS = "/etc/mmguard/side.yaml"
PORT = Settings.model_fields["port"].default


def flags(args: list[str]) -> dict[str, Any]:
    """What the command line makes of them. Raises what it raises for a flag that is none."""
    import typer.main

    command = typer.main.get_command(commands)
    serve = command.commands[args[0]]  # type: ignore[attr-defined]  # a group's
    known: dict[str, Any] = serve.make_context("serve", args[1:]).params
    return known


@pytest.fixture(params=["side.yaml", "ConfigMap"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    text = SIDE if request.param == "side.yaml" else OBJECTS["ConfigMap"]["data"]["side.yaml"]
    path = tmp_path / "side.yaml"
    path.write_text(text)
    return load_settings(path, {}, {"MMGUARD_HOST": "0.0.0.0", "MMGUARD_PORT": "8377"})


def test_the_settings_hold(settings: Settings) -> None:
    assert (settings.host, settings.port) == ("0.0.0.0", PORT)
    assert settings.audit.fail_closed
    assert settings.audit.url
    assert settings.audit.url.startswith(DATABASE)
    assert OBJECTS["ConfigMap"]["data"]["side.yaml"] == SIDE


def test_the_services_are_those_that_the_settings_name(settings: Settings) -> None:
    assert settings.upstream == "http://upstream:8000/v1"
    assert f"main(port: int = {8000}" in (FOLDER / "upstream.py").read_text(encoding="utf-8")
    services = COMPOSE["services"]
    assert set(services) == {"side", "postgres", "upstream"}
    user = services["postgres"]["environment"]["POSTGRES_USER"]
    name = services["postgres"]["environment"]["POSTGRES_DB"]
    assert settings.audit.url == f"postgresql://{user}@postgres:5432/{name}"


def test_no_secret_is_written_down() -> None:
    """Where a password may stand, a variable or a secret's name does."""
    told = " ".join(path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.y*ml")))
    assert not re.search(r"://[^/\s]*:[^/\s]*@", told)
    side = COMPOSE["services"]["side"]["environment"]
    database = COMPOSE["services"]["postgres"]["environment"]["POSTGRES_PASSWORD"]
    assert side["PGPASSWORD"] == database
    assert database.startswith("${")
    assert all("valueFrom" in variable for variable in CONTAINER["env"])


def test_variables_are_known() -> None:
    named = {*COMPOSE["services"]["side"]["environment"], *(v["name"] for v in CONTAINER["env"])}
    named |= set(re.findall(r"\b(MMGUARD_\w+)=\S", DOCKERFILE))
    known = {f"MMGUARD_{name.upper()}" for name in Settings.model_fields}
    assert named - known == {"PGPASSWORD"}


def test_the_image_runs_a_real_command() -> None:
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)
    (command,) = re.findall(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert json.loads(entry) == ["mmguard"]
    assert "mmguard" in scripts["scripts"]
    for args in (json.loads(command), CONTAINER["args"]):
        assert flags(args)["config"] == Path(SETTINGS)
    shown = re.findall(r"mmguard (serve .*)$", DOCKERFILE, re.MULTILINE)
    assert flags(shown[0].split())["upstream"]
    (extras,) = re.findall(r'"\.\[(.*)\]"', DOCKERFILE)
    assert set(extras.split(",")) <= set(scripts["optional-dependencies"])


def test_the_image_holds_what_is_built() -> None:
    """What the wheel is made of is copied, and not ignored."""
    copied = {
        name
        for line in re.findall(r"^COPY ([^-].*) \S+$", DOCKERFILE, re.MULTILINE)
        for name in line.split()
    }
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied == {line[1:] for line in ignored if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]
    assert set(build["build"]["targets"]["wheel"]["only-include"]) <= copied
    assert "USER 10001:10001" in DOCKERFILE


def test_ports_agree() -> None:
    (port,) = CONTAINER["ports"]
    assert port == {"name": "http", "containerPort": PORT}
    assert OBJECTS["Service"]["spec"]["ports"][0]["targetPort"] == "http"
    assert COMPOSE["services"]["side"]["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    assert f"EXPOSE {PORT}\n" in DOCKERFILE
    assert f"127.0.0.1:{PORT}/healthz" in DOCKERFILE
    scraped = OBJECTS["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert scraped["prometheus.io/port"] == str(PORT)


def test_the_objects_select_each_other() -> None:
    labels = OBJECTS["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert OBJECTS["Service"]["spec"]["selector"] == labels
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert OBJECTS[kind]["spec"]["selector"]["matchLabels"] == labels
    scaled = OBJECTS["HorizontalPodAutoscaler"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == OBJECTS["Deployment"]["metadata"]["name"]
    assert scaled["minReplicas"] > OBJECTS["PodDisruptionBudget"]["spec"]["minAvailable"]
    mounted = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert set(mounted) == {volume["name"] for volume in POD["volumes"]}
    assert SETTINGS.startswith(mounted["settings"])
    safe = CONTAINER["securityContext"]
    assert safe["readOnlyRootFilesystem"]
    assert not safe["allowPrivilegeEscalation"]
    assert POD["securityContext"]["runAsUser"] == 10001


@pytest.fixture
def placeholder() -> Iterator[str]:
    server = upstream.main(0, "127.0.0.1")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("stream", [False, True])
def test_the_placeholder_is_guarded(stream: bool, placeholder: str, tmp_path: Path) -> None:
    policy = str(write_policy(tmp_path, output=[{"detector": "phrases", "action": "block"}]))
    assert httpx.get(f"{placeholder}/models").json()["data"][0]["id"] == "echo"
    body = {"model": "echo", "stream": stream, "messages": [{"role": "user", "content": "hello"}]}
    with served(make_app(Settings(upstream=placeholder, policy=policy))) as url:
        answer = httpx.post(f"{url}/chat/completions", json=body)
        found = [httpx.get(url.removesuffix("/v1") + path).status_code for path in watched()]
    assert answer.status_code == 200
    assert "hello" in answer.text
    assert answer.headers["x-mmguard-policy"].startswith("policy@")
    assert found == [200] * 5


def watched() -> list[str]:
    """Every path that something looks at."""
    scraped = OBJECTS["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    probes = [CONTAINER[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")]
    (checked,) = re.findall(rf"127.0.0.1:{PORT}(/\w+)'", DOCKERFILE)
    return [*(probe["path"] for probe in probes), scraped["prometheus.io/path"], checked]
