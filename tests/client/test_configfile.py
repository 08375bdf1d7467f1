import re
from typing import Annotated

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from hamilton_client.configfile import load_config, section_of
from hamilton_client.core.contracts import Frozen, HuracanError


class Row(Frozen):
    since: str
    fee_bps: float = 0.0


class Inner(Frozen):
    rounds: Annotated[int, Field(gt=0)] = 5
    share: float = 0.5
    worldwide: Annotated[float, Field(alias="global")] = 1.0


class Section(Frozen):
    mode: str = "hybrid"
    by_name: dict[str, Inner] = Field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    TREND: int = 0


class Config(Frozen):
    training: Section = Section()
    other: Inner = Inner()
    home: str = "here"

    @model_validator(mode="after")
    def _together(self):
        if self.training.mode == "broken":
            raise ValueError("training.mode: does not go with other")
        return self


GOOD = """\
# a comment
training:
  mode: parallel
  by_name:
    first: {rounds: 7}
  rows:
    - since: "2020-01-01"
    - {since: "2021-01-01", fee_bps: 2}
  TREND: 3
"""


@pytest.fixture
def load(tmp_path):
    def load(text=GOOD, environ=None, extra=None, more=None):
        paths = []
        for name, body in {"one.yaml": text, "two.yaml": more}.items():
            if body is not None:
                (tmp_path / name).write_bytes(body if isinstance(body, bytes) else body.encode())
                paths.append(tmp_path / name)
        return load_config(Config, paths, environ or {}, extra)

    return load


def test_files_are_merged_and_the_rest_has_defaults(load):
    config = load(more="other: {rounds: 9}", extra={"home": "there"})
    assert (config.training.mode, config.training.by_name["first"].rounds, config.training.rows[1].fee_bps) == ("parallel", 7, 2.0)
    assert (config.other.rounds, config.other.share, config.home) == (9, 0.5, "there")


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "---\n"])
def test_an_empty_file_says_nothing(load, text):
    assert load(text) == Config()


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("training:", "trainning:", "one.yaml:2: unknown key 'trainning'; did you mean 'training'?"),
        ("mode: parallel", "mod: parallel", "one.yaml:3: unknown key 'training.mod'; did you mean 'mode'?"),
        ("rounds: 7", "round: 7", "one.yaml:5: unknown key 'training.by_name.first.round'; did you mean 'rounds'?"),
        ("rounds: 7", "globall: 7", "one.yaml:5: unknown key 'training.by_name.first.globall'; did you mean 'global'?"),
        ("fee_bps: 2", "fee_bp: 2", "one.yaml:8: unknown key 'training.rows.1.fee_bp'; did you mean 'fee_bps'?"),
        ("TREND: 3", "trend: 3", "one.yaml:9: unknown key 'training.trend'; did you mean 'TREND'?"),
        ("mode: parallel", "zzzzzz: 1", "one.yaml:3: unknown key 'training.zzzzzz'"),
    ],
)
def test_a_misspelt_key_names_file_line_and_the_nearest_key(load, before, after, said):
    assert GOOD.count(before) == 1
    with pytest.raises(HuracanError) as error:
        load(GOOD.replace(before, after))
    assert str(error.value).splitlines()[0] == said


@given(st.sampled_from(["mode", "by_name", "rows"]), st.integers(0, 5), st.characters(codec="ascii", categories=["Ll"]))
def test_any_one_letter_slip_finds_its_key(key, place, letter):
    slip = key[: place % len(key)] + letter + key[place % len(key) + 1 :]
    if slip == key:
        return
    with pytest.raises(HuracanError, match=re.escape(f"unknown key 'training.{slip}'; did you mean '{key}'?")):
        load_config(Config, [], {"HURACAN_TRAINING": yaml.safe_dump({slip: None})})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("training: {mode: [}", "one.yaml:1: is not valid YAML"),
        ("training:\n\tmode: a", "one.yaml:2: is not valid YAML"),
        ("training: !!python/object:os.system {}", "one.yaml:1: is not valid YAML"),
        (b"training: \xff", "one.yaml: is not UTF-8 text"),
        ("- training", "one.yaml: must hold a mapping of sections, found list"),
        ("training: 5", "one.yaml:1: training: Input should be a valid dictionary or instance of Section (found 5)"),
        ("other: {rounds: many}", "one.yaml:1: other.rounds: Input should be a valid integer"),
        ("other:\n  rounds: 0", "one.yaml:2: other.rounds: Input should be greater than 0 (found 0)"),
        ("training:\n  rows:\n  - {fee_bps: 1}", "one.yaml:3: training.rows.0.since: Field required"),
        ("other:\n  share: .nan", "one.yaml:2: other.share: must be a finite number"),
        ("other:\n  share: inf", "one.yaml:2: other.share: must be a finite number"),
        ("other:\n  rounds: 1\n  share: 1\n  rounds: 2", "one.yaml:4: other.rounds is given twice, first in one.yaml:2; remove one"),
        ("other: {}\nhome: elsewhere", "one.yaml:2: home comes from the environment, never from a file; remove it here"),
        ("other: {}\ntraining:\n  mode: broken", "one.yaml:3: training.mode: does not go with other"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(load, text, said):
    with pytest.raises(HuracanError) as error:
        load(text, extra={"home": "there"})
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_section_in_two_files_is_refused(load):
    with pytest.raises(HuracanError, match=r"two\.yaml:1: training is given twice, first in one\.yaml:2"):
        load(more="training: {}")


def test_a_missing_file_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(HuracanError, match=r"/none\.yaml: cannot be read \(No such file or directory\); HURACAN_CONFIG"):
        load_config(Config, [tmp_path / "none.yaml"], {})


def test_several_faults_are_said_together_misspelt_keys_first_and_nothing_else_is_shown(load):
    with pytest.raises(HuracanError) as error:
        load("training:\n  rows: [{sinc: x}]\nother: {rounds: -1}", extra={"home": "postgresql://user:secret@host"})
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert lines[0] == "one.yaml:2: unknown key 'training.rows.0.sinc'; did you mean 'since'?"
    assert "secret" not in str(error.value)


class TestEnvironment:
    def test_it_wins_over_files_and_is_parsed_as_yaml(self, load):
        environ = {
            "HURACAN_TRAINING__MODE": "sequential",
            "HURACAN_TRAINING__BY_NAME__FIRST__ROUNDS": "8",
            "HURACAN_TRAINING__BY_NAME__SECOND__GLOBAL": "2.5",
            "HURACAN_TRAINING__TREND": "4",
            "HURACAN_TRAINING__ROWS": "[{since: now}]",
            "HURACAN_OTHER": "{share: 0.25}",
            "HURACAN_OTHER__ROUNDS": "11",
        }
        for order in (environ, dict(reversed(environ.items()))):
            config = load(environ=order)
            assert (config.training.mode, config.training.TREND, config.training.rows[0].since) == ("sequential", 4, "now")
            assert {name: inner.rounds for name, inner in config.training.by_name.items()} == {"first": 8, "second": 5}
            assert config.training.by_name["second"].worldwide == 2.5
            assert (config.other.share, config.other.rounds) == (0.25, 11)

    def test_what_is_not_ours_is_left_alone(self, load):
        assert load(environ={"PATH": "/bin", "TRAINING__MODE": "x", "HURACAN_SOAK": "1", "HURACAN_CONFIG": "x"}) == load()

    @pytest.mark.parametrize(
        ("name", "value", "said"),
        [
            ("HURACAN_TRAINING__MOD", "x", "unknown key 'training.mod'; did you mean 'mode'?"),
            ("HURACAN_TRANING__MODE", "x", "unknown key 'traning'; did you mean 'training'?"),
            ("HURACAN_OTHER__ROUNDS", "lots", "other.rounds: Input should be a valid integer"),
            ("HURACAN_OTHER__ROUNDS", "", "other.rounds: Input should be a valid integer (found None)"),
            ("HURACAN_OTHER__ROUNDS", "{", "is not valid YAML"),
            ("HURACAN_OTHER", "5", "other: Input should be a valid dictionary"),
            ("HURACAN_TRAINING__MODE__DEEPER", "1", "training.mode: Input should be a valid string"),
            ("HURACAN_TRAINING__ROWS__0__SINCE", "x", "training.rows: Input should be a valid tuple"),
            ("HURACAN_OTHER__SHARE", ".inf", "other.share: must be a finite number"),
        ],
    )
    def test_a_fault_names_the_variable(self, load, name, value, said):
        with pytest.raises(HuracanError) as error:
            load(environ={name: value})
        assert str(error.value).startswith(f"environment variable {name}")
        assert said in str(error.value)


@pytest.mark.parametrize(
    ("variable", "section"), [("HURACAN_TRAINING__MODE", "training"), ("HURACAN_HOME", "home"), ("RISK__PRESET", ""), ("huracan_x", "")]
)
def test_section_of(variable, section):
    assert section_of(variable) == section
