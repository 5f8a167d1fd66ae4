"""What the documentation says is there: links, folders, keys, commands, snippets, generated pages."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import fields
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from model_folders import write_model
from transformers import Qwen3Config
from verifiers_environments import GAME
from weights_fakes import StagedCopy

from rlserve.cli import main
from rlserve.config.tree import RunConfig
from rlserve.manager.config import QueueThresholdConfig
from rlserve.manager.measurement.figures import Measurements
from rlserve.manager.policies.base import Admission, GangFigures, GangView, Observation
from rlserve.manager.roles import Role
from rlserve.serving.config import ServeConfig
from rlserve.tasks.character_tokenizer import character_tokenizer
from rlserve.tracking.summary import RunSummary
from rlserve.weights.contents.whole_model import WholeModel
from rlserve.weights.offer import Offer
from rlserve.weights.receiver import Receiver
from rlserve.weights.sender import Sender

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md"), *(ROOT / "examples").glob("**/*.md")])
PAGE_IDS = [str(page.relative_to(ROOT)) for page in PAGES]
TOP_FOLDERS = "rlserve|engine|trainers|launch|conf|examples|tests|docs"

LINK = re.compile(r"\]\(([^)#\s]+)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"`([^`\n]+)`")
KEY = re.compile(r"([a-z_]+(?:\.[a-zN_]+)+)(?:=.*)?")
REPOSITORY_PATH = re.compile(rf"(?:{TOP_FOLDERS})/[\w./-]*")


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of a language."""
    return [body for found, body in FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


def inline_code(page: Path) -> list[str]:
    """What stands between single backquotes, outside fenced blocks."""
    return INLINE_CODE.findall(FENCE.sub("", page.read_text(encoding="utf-8")))


def launch_lines(page: Path) -> list[list[str]]:
    """Arguments of every ``rlserve launch`` in the page's shell blocks."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines() if "rlserve launch " in line]
    return [shlex.split(line.partition("rlserve ")[2], comments=True) for line in lines]


def generator(name: str) -> ModuleType:
    """A program of the folder ``docs``."""
    spec = spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


COMMANDS = [(page, arguments) for page in PAGES for arguments in launch_lines(page)]


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_relative_links_lead_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_folders_and_files_that_are_named_exist(page: Path) -> None:
    named = [text for text in inline_code(page) if REPOSITORY_PATH.fullmatch(text)]
    placeholders = ("NAME", "ROOM", "GROUP")
    missing = [text for text in named if not (ROOT / text).exists() and not any(word in text for word in placeholders)]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_keys_that_are_named_exist(page: Path) -> None:
    root = ServeConfig if page.name.startswith("serving") else RunConfig
    known = all_keys(root)
    parts = {field.name for field in fields(root)}
    texts = own_keys(page) if page.name == "coming_from.md" else inline_code(page)
    named = [match[1] for text in texts if (match := KEY.fullmatch(text)) and not match[1].endswith(".py")]
    assert [key for key in named if key.split(".")[0] in parts and key not in known] == []


def own_keys(page: Path) -> list[str]:
    """What stands in the first column of tables of our keys beside others' keys."""
    rows = [row.split("|")[1] for row in page.read_text(encoding="utf-8").splitlines() if row.startswith("| `")]
    return [text for row in rows for text in INLINE_CODE.findall(row)]


def test_keys_beside_those_of_others_exist() -> None:
    named = own_keys(ROOT / "docs/coming_from.md")
    assert len(named) > 90
    assert [key for key in named if not key.startswith("rlserve ") and key not in all_keys()] == []


def all_keys(root: type[Any] = RunConfig) -> set[str]:
    """Every key of the configuration, and every part that holds some."""
    sections = generator("generate_configuration").sections(root)
    keys = {f"{section.key}.{field.name}".lstrip(".") for section in sections for field in fields(section.config_type)}
    return keys | {key.rpartition(".")[0] for key in keys}


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) > 10
    assert {page.name for page, _ in COMMANDS} >= {"README.md"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The models that the commands name. Of the reward model what is looked at before a run."""
    folder = tmp_path_factory.mktemp("models")
    policy, judge = write_model(folder / "policy"), folder / "reward-model"
    Qwen3Config(num_labels=1).save_pretrained(judge)
    character_tokenizer("0123456789+=ab").save_pretrained(judge)
    talker = write_model(folder / "chat-model")
    template = "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} {% endfor %}"
    (talker / "chat_template.jinja").write_text(template)
    made = dict.fromkeys(("model", "tiny", "sorter", "programmer", "multiplier"), policy)
    return {**made, "reward-model": judge, "chat-model": talker}


@pytest.fixture
def workplace(
    models: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Path:
    """A folder that has what the commands in the documentation name."""
    for name, folder in models.items():
        (tmp_path / name).symlink_to(folder)
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "answer": "b"}\n' * 2)
    (tmp_path / "completions.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 2)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 2)
    (tmp_path / "sorting").mkdir()
    for name, folder in {"blank": "model", "warm": "model", "judge": "reward-model"}.items():
        (tmp_path / "sorting" / name).symlink_to(models[folder])
    (tmp_path / "my_reward.py").write_text(next(block for block in blocks(ROOT / "README.md", "python")))
    game = next(block for block in blocks(ROOT / "docs/environments.md", "python") if "my_game.py" in block)
    (tmp_path / "my_game.py").write_text(game)
    (tmp_path / "wordle.py").write_text(GAME)
    (tmp_path / "prices.yaml").write_text(blocks(ROOT / "docs/cost.md", "yaml")[0])
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    main(["launch", "conf/rlhf.yaml", "--dry-run"])
    (tmp_path / "runs/my-run").mkdir(parents=True)
    (tmp_path / "runs/my-run/config.yaml").write_text(capsys.readouterr().out)
    (tmp_path / "runs/latest").symlink_to("my-run")
    return tmp_path


@pytest.mark.parametrize("command", [arguments for _, arguments in COMMANDS], ids=" ".join)
def test_commands_are_understood(command: list[str], workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if any("verifiers:" in word for word in command):
        pytest.importorskip("verifiers", reason="the verifiers package is not installed")
    words = [word.replace("/my/", f"{workplace}/") for word in command]
    assert main([*words, "--dry-run"]) == 0, capsys.readouterr().err
    assert re.search("# rollout slots: |all of them train$", capsys.readouterr().out, re.M)


def test_the_table_of_the_summary_is_complete() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("| `summary.json` | meaning |")[2].partition("\n\n")[0]
    named = [
        name for row in table.splitlines() for name in INLINE_CODE.findall(row.split("|")[1] if "|" in row else "")
    ]
    assert named == [field.name for field in fields(RunSummary)]


@pytest.mark.parametrize("file", ["conf/pool/h100_h200.yaml", "conf/manager/queue_threshold.yaml"])
def test_configurations_that_are_shown_are_the_real_ones(file: str) -> None:
    shown = [yaml.safe_load(block) for block in blocks(ROOT / "README.md", "yaml")]
    assert yaml.safe_load((ROOT / file).read_text()) in shown


def test_generated_pages_are_up_to_date() -> None:
    configuration, metrics = generator("generate_configuration"), generator("generate_metrics")
    for page in configuration.PAGES:
        assert page.target.read_text(encoding="utf-8") == configuration.render(page), (
            "run python docs/generate_configuration.py"
        )
    assert metrics.TARGET.read_text(encoding="utf-8") == metrics.render(), "run python docs/generate_metrics.py"


def test_every_key_has_a_meaning() -> None:
    rows = [row for row in (ROOT / "docs/configuration.md").read_text().splitlines() if row.startswith("| `")]
    assert len(rows) > 80
    assert [row for row in rows if row.rstrip(" |").endswith("|") or row.endswith("|  |")] == []


def test_the_reward_that_is_shown_scores() -> None:
    (source,) = [block for block in blocks(ROOT / "README.md", "python") if "def score" in block]
    assert _score(source, response="the sum is 92", finished=True) == pytest.approx(0.995)
    assert _score(source, response="", finished=True) == pytest.approx(-0.005)
    assert _score(source, response="the sum is 92", finished=False) == 0.0


def _score(source: str, *, response: str, finished: bool) -> float:
    names: dict[str, Any] = {}
    exec(source, names)
    sample = SimpleNamespace(response=response, answer="92", finished=finished, response_token_ids=(1, 2, 3, 4, 5))
    return float(names["score"](sample))


def test_the_transport_that_is_shown_keeps_what_is_needed() -> None:
    _, source = blocks(ROOT / "docs/extending.md", "python")
    names: dict[str, Any] = {}
    exec(source, names)
    transport = names["KEEPING"]
    sender = Sender("cpu/0", transport.sending(None), WholeModel(torch.float32), keeps_last=True)
    weight = torch.tensor([1.0, 2.0])
    for version in (1, 2, 3):
        sender.take_snapshot(version, {"w": version * weight})
        cargo, part = sender.send(version, None, needed=(1,))
    receiver = Receiver(transport.receiving(None), keeps_last=True)
    found = receiver.receive([Offer(version=3, parts=(part,))], [cargo], StagedCopy)
    assert torch.equal(found.tensors["w"], 3 * weight)
    assert set(names["KeepingSendingEnd"].kept) == {1, 3}


def test_the_policy_that_is_shown_decides() -> None:
    source, _ = blocks(ROOT / "docs/extending.md", "python")
    names: dict[str, Any] = {}
    exec(source, names)
    policy = names["StickyPolicy"](QueueThresholdConfig(queue_high=20, queue_low=6))
    state, plans = policy.initial_state(), []
    for queue_length in (30, 30, 0, 30, 30, 30):
        plan, state = policy.decide(_observation(queue_length), state)
        plans.append([move.to for move in plan.moves])
    assert plans == [[], [], [], [], [], [Role.ROLLOUT]]


def _observation(queue_length: int) -> Observation:
    figures = GangFigures(memory_bandwidth_gb_s=3350, flops_tflops=989)
    roles = {"a": Role.TRAIN, "b": Role.TRAIN, "c": Role.ROLLOUT}
    return Observation(
        time_s=0.0,
        queue_length=queue_length,
        num_buffered=0,
        num_in_flight=0,
        trainer_waiting=False,
        num_steps_left=None,
        admission=Admission(prompts_per_step=16, samples_per_prompt=8, max_live_groups=32, max_samples_per_replica=64),
        measured=Measurements(),
        gangs=tuple(GangView(id=name, type="test", figures=figures, role=role) for name, role in roles.items()),
        legal_trainer_sizes=(1, 2),
        moving=False,
        last_move_end_s=None,
    )
