"""What the environment and wandb's own files say: whether to upload, and under which names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlserve.errors import UserError
from rlserve.tracking.config import WandbConfig
from rlserve.tracking.wandb_settings import Surroundings, choose_mode, choose_names, has_key

KEY = {"WANDB_API_KEY": "c0ffee" * 6 + "beef", "HOME": "/nowhere"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder; the process stands in an empty folder, too."""
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def said(environment: Mapping[str, str], settings: Mapping[str, str] | None = None) -> Surroundings:
    return Surroundings(environment=environment, settings=settings or {})


def mode_of(mode: str, surroundings: Surroundings) -> str:
    return choose_mode(WandbConfig(mode=mode), surroundings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        ("auto", {"HOME": "/nowhere"}, "offline"),
        ("auto", KEY, "online"),
        ("auto", {**KEY, "WANDB_MODE": "offline"}, "offline"),
        ("auto", {**KEY, "WANDB_MODE": ""}, "online"),
        ("auto", {**KEY, "WANDB_MODE": "run"}, "online"),
        ("auto", {"WANDB_MODE": "disabled"}, "disabled"),
        ("auto", {**KEY, "WANDB_DISABLED": "true"}, "disabled"),
        ("auto", {**KEY, "WANDB_DISABLED": "false"}, "online"),
        ("auto", {**KEY, "WANDB_MODE": "online", "WANDB_DISABLED": "1"}, "disabled"),
        ("online", {**KEY, "WANDB_MODE": "Dry-Run"}, "offline"),
        ("online", {**KEY, "WANDB_DISABLED": "yes"}, "disabled"),
        ("offline", KEY, "offline"),
        ("offline", {**KEY, "WANDB_MODE": "online"}, "offline"),
        ("online", KEY, "online"),
        ("disabled", {"WANDB_MODE": "offline"}, "disabled"),
    ],
)
def test_mode(mode: str, environment: Mapping[str, str], expected: str) -> None:
    assert mode_of(mode, said(environment)) == expected


@given(
    st.sampled_from(["offline", "dryrun", "dry run", "dry-run", "DRY_RUN", "disabled", "off", "none", "false"]),
    st.data(),
)
def test_no_spelling_uploads(word: str, data: st.DataObject) -> None:
    spelled = "".join(data.draw(st.sampled_from([letter.lower(), letter.upper()])) for letter in word)
    environment = {**KEY, "WANDB_MODE": f" {spelled} "}
    for mode in ("auto", "online"):
        expected = "offline" if word[:2].lower() in ("dr",) or word == "offline" else "disabled"
        assert mode_of(mode, said(environment)) == expected


def test_a_mode_that_nobody_knows_is_no_leave_to_upload(caplog: pytest.LogCaptureFixture) -> None:
    assert mode_of("auto", said({**KEY, "WANDB_MODE": "privat"})) == "offline"
    assert "'privat' is none of online, offline, disabled" in caplog.text


def test_who_says_not_to_upload_is_named_where_the_configuration_says_otherwise(
    caplog: pytest.LogCaptureFixture,
) -> None:
    mode_of("online", said({**KEY, "WANDB_MODE": "OFFLINE"}))
    assert "WANDB_MODE=OFFLINE says not to upload, and counts more than tracking.wandb.mode=online" in caplog.text


@pytest.mark.parametrize(
    ("place", "text", "expected"),
    [
        ("home/.config/wandb", "mode = offline", "offline"),
        ("home/.config/wandb", "mode = disabled", "disabled"),
        ("home/.config/wandb", "disabled = true", "disabled"),
        ("home/.config/wandb", "disabled = false", "online"),
        ("work/wandb", "mode = dryrun", "offline"),
        ("work/.wandb", "mode = offline", "offline"),
        ("work/wandb", "mode = online", "online"),
    ],
)
def test_settings_files_are_obeyed(home: Path, place: str, text: str, expected: str) -> None:
    folder = home.parent / place
    folder.mkdir(parents=True)
    (folder / "settings").write_text(f"[default]\n{text}\n")
    environment = {**KEY, "HOME": str(home)}
    assert mode_of("auto", Surroundings.read(environment)) == expected
    if text.startswith("mode"):
        assert mode_of("auto", Surroundings.read({**environment, "WANDB_MODE": "online"})) == "online"


def test_the_working_folders_settings_count_more_and_broken_ones_are_said(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for place, text in (("home/.config/wandb", "[default]\nmode=offline\nproject=a%b\n"), ("work/wandb", "mode")):
        (home.parent / place).mkdir(parents=True)
        (home.parent / place / "settings").write_text(text)
    surroundings = Surroundings.read({"HOME": str(home)})
    assert "no settings taken from" in caplog.text
    assert dict(surroundings.settings) == {"mode": "offline", "project": "a%b"}
    (home.parent / "work/wandb/settings").write_text("[default]\nmode=disabled\n")
    assert mode_of("auto", Surroundings.read({"HOME": str(home)})) == "disabled"


def test_online_without_a_key_is_refused_with_a_remedy(home: Path) -> None:
    for mode, environment in (("online", {}), ("auto", {"WANDB_MODE": "online"})):
        with pytest.raises(UserError, match="wandb login"):
            mode_of(mode, said({"HOME": str(home), **environment}))


def test_key_from_netrc_counts_only_for_the_server_in_use(home: Path) -> None:
    environment = {"HOME": str(home)}
    (home / ".netrc").write_text(f"machine wandb.example.org login user password {KEY['WANDB_API_KEY']}\n")
    assert not has_key(said(environment))
    assert has_key(said({**environment, "WANDB_BASE_URL": "https://wandb.example.org"}))
    settings = {"base_url": "https://wandb.example.org"}
    assert has_key(said(environment, settings))
    assert not has_key(said({**environment, "WANDB_BASE_URL": "https://api.wandb.ai"}, settings))


def test_a_broken_netrc_is_reported_and_holds_no_key(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    (home / ".netrc").write_text("machine\nnonsense here\n")
    assert not has_key(said({"HOME": str(home)}))
    assert "no key taken from" in caplog.text


@pytest.mark.parametrize(
    ("config", "environment", "settings", "expected"),
    [
        (WandbConfig(), {}, {}, ("rlserve", "my-run")),
        (WandbConfig(), {"WANDB_PROJECT": "mine", "WANDB_NAME": "n"}, {}, (None, None)),
        (WandbConfig(), {}, {"project": "mine"}, (None, "my-run")),
        (WandbConfig(project="p", name="x"), {"WANDB_PROJECT": "mine"}, {}, ("p", "x")),
    ],
)
def test_our_own_names_are_the_last_resort(
    config: WandbConfig, environment: Mapping[str, str], settings: Mapping[str, str], expected: tuple[str | None, ...]
) -> None:
    assert choose_names(config, said(environment, settings), "my-run") == expected
