"""Settings: a file with a table of each kind, defaults, and mistakes told with their line and the allowed form."""

from __future__ import annotations

import tomllib
from dataclasses import fields, replace
from pathlib import Path

import pytest

from gateway.settings.model import (
    AtCap,
    Caller,
    Completion,
    Deliver,
    Destination,
    GatewaySettings,
    Limits,
    Mode,
    Peer,
    Priority,
    ResultForm,
    Retain,
    Rule,
    Select,
)
from gateway.settings.read import InvalidSettings, Problem, load_settings, read_settings, reload_settings
from medseg.conditions.patterns import Exactly, Glob
from medseg.conditions.terms import Condition
from medseg.errors import UsageError

# A file with a table of each kind.
WRITTEN_OUT = """\
[gateway]                      # every key has a default
ae_title = "MEDSEG"
host = "127.0.0.1"
port = 11112
http_port = 8090
spool = "spool"
database = "sqlite:///ledger.db"
allow_callers = ["PACS", "CT01@127.0.0.1"]      # or allow_any_caller = true

[complete]                     # seconds
quiet_s = 3                    # sender has released and holds no open association
quiet_gap_s = 30               # ... but a slice is missing
quiet_open_s = 60              # an association of the sender is still open
quiet_abort_s = 60
quiet_late_s = 60              # up to which quiet_s grows after images that came late
cap_s = 1800                   # then infer or hold, by rule
late_s = 86400                 # images after the result: infer again, supersede

[limits]
associations = 25
per_caller = 10
disk_used_percent = 90
disk_free_gb = 5

[deliver]
first_retry_s = 5
longest_retry_s = 600
give_up_s = 86400
commitment = true

[retain]
inputs_s = 259200              # after confirmed delivery
results_s = 2592000

[[peer]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = 4242

[[rule]]                       # first match wins
when = { modality = "MR", series_description = "*T1*", called_ae = "MEDSEG" }
select = "every"               # every | thinnest | most_slices, among a study's matching series
bundle = "hippocampus_t1_unet3d"     # a name, or a folder
send_to = ["pacs"]             # default: the caller, where it is a known peer
results = ["seg", "sr"]
priority = "routine"           # stat | routine | low
mode = "on"                    # on | shadow | hold | off
assume_frame_of_reference = false
"""
FOLDER = Path("/etc/medseg")


def read(text: str) -> GatewaySettings:
    return read_settings(text, FOLDER)


def problems(text: str) -> tuple[Problem, ...]:
    with pytest.raises(InvalidSettings) as caught:
        read(text)
    return caught.value.problems


def problem(text: str) -> Problem:
    (one,) = problems(text)
    return one


def nobody(host: str) -> list[str]:
    raise AssertionError(f"{host} was looked up")


def test_a_file_with_a_table_of_each_kind_is_read() -> None:
    settings = read(WRITTEN_OUT)
    assert settings.gateway.allow_callers == (Caller("PACS"), Caller("CT01", "127.0.0.1"))
    assert not settings.gateway.allow_any_caller
    assert settings.peers == (Peer("pacs", "PACS", "127.0.0.1", 4242),)
    assert settings.rules == (
        Rule(
            name="rule 1",
            when=(
                Condition("modality", "Modality", (Glob("MR"),)),
                Condition("series_description", "SeriesDescription", (Glob("*T1*"),)),
                Condition("called_ae", "called_ae", (Exactly("MEDSEG"),)),
            ),
            bundle="hippocampus_t1_unet3d",
            send_to=("pacs",),
        ),
    )


def test_what_it_says_are_the_defaults() -> None:
    settings, defaults = read(WRITTEN_OUT), read("")
    admission = {"allow_callers": (), "allow_any_caller": True}
    assert replace(settings.gateway, **admission) == defaults.gateway
    for group in ("complete", "limits", "deliver", "retain"):
        assert getattr(settings, group) == getattr(defaults, group)
    assert defaults.rules == (Rule("default"),)


def test_every_key_of_the_groups_can_stand_in_a_file() -> None:
    written = tomllib.loads(WRITTEN_OUT)
    for group, kind in (("complete", Completion), ("limits", Limits), ("deliver", Deliver), ("retain", Retain)):
        assert set(written[group]) == {one.name for one in fields(kind)}
    everything = """
        [gateway]
        allow_any_caller = true
        [[peer]]
        name = "pacs"
        ae_title = "PACS"
        host = "pacs.example"
        port = 104
        query = true
        [[rule]]
        name = "first"
        select = "thinnest"
        results = ["sr"]
        priority = "stat"
        mode = "shadow"
        at_cap = "infer"
        assume_frame_of_reference = true
    """
    settings = read(everything)
    assert settings.peers == (Peer("pacs", "PACS", "pacs.example", 104, query=True),)
    assert settings.destinations() == {"pacs": Destination("PACS", "pacs.example", 104, "MEDSEG")}
    assert settings.rules == (
        Rule(
            "first",
            select=Select.THINNEST,
            results=(ResultForm.SR,),
            priority=Priority.STAT,
            mode=Mode.SHADOW,
            at_cap=AtCap.INFER,
            assume_frame_of_reference=True,
        ),
    )


def test_without_a_file_any_caller_on_loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings(None)
    assert settings.gateway.host == "127.0.0.1"
    assert settings.gateway.admits("ANYBODY", "127.0.0.1", nobody)
    assert settings.gateway.spool == tmp_path / "spool"
    assert settings.gateway.database == f"sqlite:///{tmp_path}/ledger.db"


def test_relative_paths_start_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    file = tmp_path / "etc" / "medseg.toml"
    file.write_text('[gateway]\nspool = "data/in"\n[[rule]]\nbundle = "./mine"\n[[rule]]\nbundle = "spleen"\n')
    monkeypatch.chdir(tmp_path)
    settings = load_settings(Path("etc/medseg.toml"))
    assert settings.gateway.spool == tmp_path / "etc" / "data" / "in"
    assert settings.gateway.database == f"sqlite:///{tmp_path}/etc/ledger.db"
    assert [rule.bundle for rule in settings.rules] == [str(tmp_path / "etc" / "mine"), "spleen"]
    file.write_text('[[rule]]\nbundle = ["./mine", "spleen"]\n')
    (rule,) = load_settings(file).rules
    assert [one.bundle for one in rule.each] == [str(tmp_path / "etc" / "mine"), "spleen"]


def test_an_absolute_database_stays() -> None:
    database = "sqlite:////var/lib/medseg/ledger.db"
    assert read(f'[gateway]\ndatabase = "{database}"').gateway.database == database


@pytest.mark.parametrize(
    "database", ["postgresql://medseg:secret@db/medseg", "postgresql+psycopg://u:secret@db", "postgres://u:secret@db"]
)
def test_a_ledger_on_postgresql_is_refused_by_a_sentence_that_shows_no_password(database: str) -> None:
    (problem,) = problems(f'[gateway]\ndatabase = "{database}"')
    said = 'line 2: gateway.database: a ledger on PostgreSQL is not in this version: expected "sqlite:///FILE"'
    assert str(problem) == said


def test_a_peer_is_called_by_dicomweb_or_by_dimse() -> None:
    address = 'dicomweb = "http://127.0.0.1:8042/dicom-web/"'
    (peer,) = read_settings(f'[[peer]]\nname = "p"\nae_title = "PACS"\n{address}', Path("/")).peers
    assert (peer.dicomweb, peer.ae_title) == ("http://127.0.0.1:8042/dicom-web", "PACS")
    said = [str(one) for one in problems(f'[[peer]]\nname = "p"\n{address}\nhost = "h"\nport = 1')]
    assert said == [f"line {n}: peer.{key}: expected either dicomweb or host and port, found both" for n, key in
                    ((4, "host"), (5, "port"))]  # fmt: skip
    neither = [str(problem) for problem in problems('[[peer]]\nname = "p"')]
    assert neither == [
        "line 1: peer.ae_title: expected an AE title of 1 to 16 printable ASCII characters without backslash, "
        "found nothing",
        "line 1: peer.host: expected a host name or address, found nothing",
        "line 1: peer.port: expected a port from 1 to 65535, found nothing",
    ]
    for wrong in ("http://u:p@h/", "ftp://h", "http://", "h:80", "http://h?x=1", "http://h:99999"):
        (problem,) = problems(f'[[peer]]\nname = "p"\ndicomweb = "{wrong}"')
        assert "without user and password" in str(problem)


@pytest.mark.parametrize(
    ("text", "line", "key", "words"),
    [
        ("[gateway]\nport = 70000", 2, "gateway.port", ["a port from 1 to 65535", "70000"]),
        ("[gateway]\nport = true", 2, "gateway.port", ["a port", "true"]),
        ('[gateway]\nport = "11112"', 2, "gateway.port", ['"11112"']),
        ("[gateway]\n\nprot = 1", 3, "gateway.prot", ["no such key", "did you mean port?"]),
        ("[gatway]\nport = 1", 1, "gatway", ["did you mean gateway?"]),
        ("gateway = 5", 1, "gateway", ["expected a table [gateway]", "5"]),
        ('[gateway]\nae_title = "MED\\\\SEG"', 2, "gateway.ae_title", ["without backslash"]),
        ('[gateway]\nae_title = "MEDSEG_AND_MORE_X"', 2, "gateway.ae_title", ["1 to 16"]),
        ('[gateway]\nae_title = "   "', 2, "gateway.ae_title", ["1 to 16"]),
        ('[gateway]\nae_title = "MÉDSEG"', 2, "gateway.ae_title", ["ASCII", "É"]),
        ('[gateway]\nae_title = "A\\tB"', 2, "gateway.ae_title", ["printable"]),
        ("[gateway]\nport = 8090", 1, "gateway.http_port", ["8090 for both"]),
        ("[gateway]\nport = 8090\nhttp_port = 8090", 3, "gateway.http_port", ["8090 for both"]),
        ('[gateway]\nhost = "0.0.0.0"', 1, "gateway.allow_callers", ["allow_any_caller = true", "loopback"]),
        ('[gateway]\nallow_callers = "PACS"', 2, "gateway.allow_callers", ['"AE@host"', '"PACS"']),
        ('[gateway]\nallow_callers = ["PACS@"]', 2, "gateway.allow_callers", ['"AE@host"']),
        ('[gateway]\nallow_callers = ["A"]\nallow_any_caller = true', 3, "gateway.allow_any_caller", ["either"]),
        ('[gateway]\ndatabase = "mysql://x"', 2, "gateway.database", ["sqlite:///FILE"]),
        ('[gateway]\ndatabase = "sqlite://"', 2, "gateway.database", ["sqlite:///FILE"]),
        ("[complete]\nquiet_s = -1", 2, "complete.quiet_s", ["seconds, 0 or more", "-1"]),
        ("[complete]\nquiet_s = inf", 2, "complete.quiet_s", ["seconds"]),
        ("[complete]\nquiet_s = nan", 2, "complete.quiet_s", ["seconds"]),
        ("[limits]\nassociations = 2.5", 2, "limits.associations", ["a whole number"]),
        ("[limits]\ndisk_used_percent = 120", 2, "limits.disk_used_percent", ["1 to 100"]),
        ("[deliver]\ncommitment = 1", 2, "deliver.commitment", ["true or false"]),
        ("[deliver]\nfirst_retry_s = 700", 2, "deliver.first_retry_s", ["longest_retry_s", "700 > 600"]),
        ("[retain]\ninputs_s = 60", 2, "retain.inputs_s", ["no less than complete.late_s", "60 < 86400"]),
        ("[retain]\nresults_s = 60", 2, "retain.results_s", ["no less than inputs_s", "60 < 259200"]),
        ('[peer]\nname = "pacs"', 1, "peer", ["[[peer]]"]),
        ('[[peer]]\nae_title = "P"\nhost = "h"\nport = 1', 1, "peer.name", ["a text", "nothing"]),
        ('[[peer]]\nname = "pacs"\nae_title = "P"\nport = 104', 1, "peer.host", ["a host name", "found nothing"]),
        ('[[peer]]\nname = "pacs"\nhost = "h"\nport = 104', 1, "peer.ae_title", ["an AE title", "found nothing"]),
        ('[[peer]]\nname = "pacs"\nae_title = "P"\nhost = "h"', 1, "peer.port", ["a port from 1", "found nothing"]),
        ('[[peer]]\nname="p"\nae_title="A"\nhost="127.0.0.1"\nport=11112', 5, "peer.port", ["this gateway's own"]),
        (2 * '[[peer]]\nname="p"\nae_title="A"\nhost="h"\nport=1\n', 7, "peer.name", ["twice"]),
        ('[[rule]]\n\n[[rule]]\nmode = "of"', 4, "rule.mode", ['"on" or "shadow" or "hold" or "off"', '"of"']),
        ('[[rule]]\nresults = ["seg", "pdf"]', 2, "rule.results", ['"seg", "labelmap", "sr", "ko", "rtstruct"']),
        ("[[rule]]\nresults = []", 2, "rule.results", ['"seg", "labelmap", "sr", "ko", "rtstruct"']),
        ('[[rule]]\nsend_to = ["pacs"]', 2, "rule.send_to", ['"pacs"', "there is no [[peer]]"]),
        ('[[rule]]\nname = "rule 2"\n[[rule]]', 3, "rule.name", ["twice"]),
        ("[[rule]]\nbundle = []", 2, "rule.bundle", ["a text, or a list of them", "[]"]),
        ('[[rule]]\nbundle = ["a", 3]', 2, "rule.bundle", ["a text, or a list of them"]),
        ('[[rule]]\nbundle = ["x/a", "a"]', 2, "rule.bundle", ["different names", "a, a"]),
        ('[[rule]]\nprefer = ["newest"]', 2, "rule.prefer", ["most_slices", "KEYWORD:VALUE"]),
        ('[[rule]]\nselect = "thinnest"\nprefer = ["latest"]', 3, "rule.prefer", ["either"]),
        ('[[rule]]\nwhen = { contrast = "maybe" }', 2, "rule.when.contrast", ['"given", "none", "not known"']),
        ('[[rule]]\nwhen = { plane = "axial 90" }', 2, "rule.when.plane", ['"axial 10"']),
        ('[[rule]]\nwhen = "MR"', 2, "rule.when", ['a table such as { modality = "MR" }']),
        ('[[rule]]\nwhen = { modalty = "MR" }', 2, "rule.when.modalty", ["no such condition", "modality", "keyword"]),
        ("[[rule]]\nwhen = { modality = 3 }", 2, "rule.when.modality", ["a text", "list", "3"]),
        ("[[rule]]\nwhen = { modality = [] }", 2, "rule.when.modality", ["a text", "[]"]),
        ('[[rule]]\n[rule.when]\nslices = "many"', 3, "rule.when.slices", ['">=20"', '"many"']),
        ('[[rule]]\nwhen.called_ae = "A\\\\B"', 2, "rule.when.called_ae", ["an AE title"]),
        ('[[rule]]\nwhen = { ReferencedSeriesSequence = "x" }', 2, "rule.when.ReferencedSeriesSequence", ["texts"]),
        ('[[rule]]\nwhen = { PixelData = "x" }', 2, "rule.when.PixelData", ["no such condition"]),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_line_key_and_allowed_form(text: str, line: int, key: str, words: list[str]) -> None:
    found = problem(text)
    assert (found.line, found.key) == (line, key)
    for word in words:
        assert word in found.message
    assert str(found).startswith(f"line {line}: {key}: ")


def test_all_mistakes_at_once_in_the_order_of_the_file() -> None:
    found = problems(
        WRITTEN_OUT.replace("port = 11112", "port = 0")
        .replace("quiet_s = 3 ", "quiet = 3 ")
        .replace('"pacs"]', '"PACS"]')
        .replace('"MR"', "1")
    )
    assert [one.key for one in found] == ["gateway.port", "complete.quiet", "rule.when.modality", "rule.send_to"]
    assert [one.line for one in found] == sorted(one.line for one in found if one.line)


def test_the_error_is_one_of_usage_and_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "medseg.toml"
    file.write_text("[gateway]\nport = 0\nhttp_port = 0\n")
    with pytest.raises(UsageError) as caught:
        load_settings(file)
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == ["line 2", "line 3"]
    assert all(line.startswith(str(file)) for line in str(caught.value).splitlines())


@pytest.mark.parametrize(
    ("text", "line"),
    [("[gateway\n", 1), ('a = 1\nb = "x\n', 2), ("a = 1\na = 2\n", 2), ("\n\n= 3", 3), ("x = [1,", None)],
)
def test_what_is_not_toml_has_a_line(text: str, line: int | None) -> None:
    found = problem(text)
    assert "not TOML" in found.message
    assert line is None or found.line == line


def test_what_lies_too_deep_is_refused_in_words() -> None:
    deep = "[[rule]]\nwhen = " + "{ not = " * 5000 + "{}" + " }" * 5000
    assert "too deep" in problem(deep).message
    assert "too deep" in problem("x = " + "[" * 5000 + "]" * 5000).message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="No such file"):
        load_settings(tmp_path / "absent.toml")
    (tmp_path / "latin.toml").write_bytes('[gateway]\nae_title = "É"'.encode("latin-1"))
    with pytest.raises(InvalidSettings, match="UTF-8"):
        load_settings(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("callers", "calling", "address", "admitted"),
    [
        (["PACS"], "PACS", "10.0.0.9", True),
        (["PACS"], "PACS  ", "10.0.0.9", True),  # padding is not significant
        (["PACS"], "pacs", "10.0.0.9", False),  # case is
        (["PACS"], "PACS2", "10.0.0.9", False),
        (["CT01@10.0.0.1"], "CT01", "10.0.0.1", True),
        (["CT01@10.0.0.1"], "CT01", "::ffff:10.0.0.1", True),  # through a socket for both families
        (["CT01@10.0.0.1"], "CT01", "10.0.0.2", False),
        (["CT01@::1"], "CT01", "0:0::1", True),
        (["CT01@scanner"], "CT01", "10.0.0.3", True),
        (["CT01@scanner"], "CT01", "10.0.0.4", False),
        (["A@B@10.0.0.1"], "A@B", "10.0.0.1", True),
        ([], "PACS", "127.0.0.1", False),
    ],
)
def test_who_may_call(callers: list[str], calling: str, address: str, admitted: bool) -> None:
    gateway = read(f"[gateway]\nallow_callers = {callers}".replace("'", '"')).gateway
    assert gateway.admits(calling, address, lambda host: {"scanner": ["10.0.0.3", "10.0.0.5"]}[host]) is admitted


def test_reload_takes_what_is_right_and_keeps_the_old_where_it_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "medseg.toml"
    file.write_text("[complete]\nquiet_s = 4\n")
    first = load_settings(file)
    file.write_text("[complete]\nquiet_s = 7\n[gateway]\nport = 104\nallow_callers = ['PACS']\n")
    second = reload_settings(file, first)
    assert second.settings.complete.quiet_s == 7
    assert second.settings.gateway.allow_callers == (Caller("PACS"),)
    assert (second.settings.gateway.port, second.kept) == (11112, ("gateway.port",))
    file.write_text("[complete]\nquiet_s = 'long'\n")
    third = reload_settings(file, second.settings)
    assert third.settings is second.settings
    assert [one.line for one in third.problems] == [2]
    file.unlink()
    assert reload_settings(file, second.settings).settings is second.settings


# Patterns.


def test_the_results_a_rule_can_name_are_those_medseg_makes() -> None:
    """But for captures: an object for each slice is more than a rule's deliveries are made for."""
    folder = pytest.importorskip("medseg.job.folder")
    assert {str(one) for one in ResultForm} == {str(one) for one in folder.DICOM - {folder.Format.SC}}
