"""What an administrator decides: `medseg.toml`, read once at the edge into small frozen groups.

Every key stands in one line here: its name, its form (what is allowed, in words and as a check), its default.
A file with mistakes gives all of them at once, each with its line, its key and the allowed form.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from enum import StrEnum
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar, get_type_hints

from pydicom.datadict import dictionary_VR, tag_for_keyword

from gateway import forms
from gateway.forms import Form, Pattern
from gateway.toml import Key, NotToml, line_of, parse
from medseg.errors import UsageError

T = TypeVar("T")

#: The addresses behind a host name.
Resolve: TypeAlias = Callable[[str], Collection[str]]


@dataclass(frozen=True)
class Problem:
    """Something wrong in the settings. key: as in the file ("peer.port"); line: 1-based, None where there is none."""

    key: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        return ": ".join(part for part in (f"line {self.line}" if self.line else "", self.key, self.message) if part)


class InvalidSettings(UsageError):
    """The settings cannot be used; `problems` has everything that is wrong with them."""

    code = "invalid_settings"

    def __init__(self, name: str, problems: Iterable[Problem]) -> None:
        self.name, self.problems = name, tuple(problems)
        super().__init__("\n".join(f"{name}: {problem}" for problem in self.problems))


@dataclass(frozen=True)
class Caller:
    """Who may call: an AE title, from any host or from one. host: an address or a name."""

    ae_title: str
    host: str | None = None

    @classmethod
    def read(cls, value: Any) -> Caller:
        """From "AE" or "AE@host"; the last @ divides, since an AE title may hold one itself. Raises ValueError."""
        title, at, host = forms.text(value).rpartition("@")
        return cls(forms.ae_title(title), forms.host(host)) if at else cls(forms.ae_title(value))


CALLERS = Form('a list of "AE" or "AE@host"', forms.several(Caller.read))


#: Where the web process listens, and nowhere else: what it tells is for this machine.
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Gateway:
    """Who we are and where we listen, with how many processes (`receivers`).

    With neither allow key in a file: any caller, where `host` is a loopback.
    """

    ae_title: Annotated[str, forms.AE_TITLE] = "MEDSEG"
    host: Annotated[str, forms.HOST] = "127.0.0.1"
    port: Annotated[int, forms.PORT] = 11112
    receivers: Annotated[int, forms.COUNT] = 2
    http_port: Annotated[int, forms.PORT] = 8090
    spool: Annotated[Path, forms.FOLDER] = Path("spool")
    database: Annotated[str, forms.DATABASE] = field(default="sqlite:///ledger.db", repr=False)  # may hold a password
    allow_callers: Annotated[tuple[Caller, ...], CALLERS] = ()
    allow_any_caller: Annotated[bool, forms.FLAG] = True

    def admits(self, calling_ae: str, address: str, resolve: Resolve) -> bool:
        """Whether a caller may call from that IP address. `resolve` is asked for the names in "AE@name" only."""
        return self.allow_any_caller or any(
            caller.ae_title == calling_ae.strip(" ") and (caller.host is None or _is_at(caller.host, address, resolve))
            for caller in self.allow_callers
        )


@dataclass(frozen=True)
class Complete:
    """When a series is taken as complete although nobody has said so (`receive.completion`), in seconds.

    quiet_late_s: up to which quiet_s grows after images that came late.
    """

    quiet_s: Annotated[float, forms.SECONDS] = 3.0
    quiet_gap_s: Annotated[float, forms.SECONDS] = 30.0
    quiet_open_s: Annotated[float, forms.SECONDS] = 60.0
    quiet_abort_s: Annotated[float, forms.SECONDS] = 60.0
    quiet_late_s: Annotated[float, forms.SECONDS] = 60.0
    cap_s: Annotated[float, forms.SECONDS] = 1800.0
    late_s: Annotated[float, forms.SECONDS] = 86400.0


@dataclass(frozen=True)
class Limits:
    """What may be used: associations in all and per calling AE, and the disk of the spool."""

    associations: Annotated[int, forms.COUNT] = 25
    per_caller: Annotated[int, forms.COUNT] = 10
    disk_used_percent: Annotated[float, forms.PERCENT] = 90.0
    disk_free_gb: Annotated[float, forms.GIGABYTES] = 5.0


@dataclass(frozen=True)
class Deliver:
    """How results leave: pauses between attempts (s), when to give up (s), whether to ask for commitment."""

    first_retry_s: Annotated[float, forms.SECONDS] = 5.0
    longest_retry_s: Annotated[float, forms.SECONDS] = 600.0
    give_up_s: Annotated[float, forms.SECONDS] = 86400.0
    commitment: Annotated[bool, forms.FLAG] = True


@dataclass(frozen=True)
class Retain:
    """How long things are kept after confirmed delivery, in seconds: the images, and their results with all the rest.

    Images stay for as long as late ones may come (`Complete.late_s`), results for as long as their images.
    """

    inputs_s: Annotated[float, forms.SECONDS] = 259200.0
    results_s: Annotated[float, forms.SECONDS] = 2592000.0


@dataclass(frozen=True)
class Peer:
    """Somebody to send to: by DIMSE (ae_title, host and port), or by STOW-RS (dicomweb).

    query: whether to ask it by C-FIND how many instances a series has: true always, of the study too; false never;
        by default of the series that it sends itself.
    """

    name: Annotated[str, forms.TEXT]
    ae_title: Annotated[str | None, forms.AE_TITLE] = None
    host: Annotated[str | None, forms.HOST] = None
    port: Annotated[int | None, forms.PORT] = None
    dicomweb: Annotated[str | None, forms.WEB_ADDRESS] = None
    query: Annotated[bool | None, forms.FLAG] = None


class Select(StrEnum):
    """Which of a study's series that match a rule are segmented."""

    EVERY = "every"
    THINNEST = "thinnest"
    MOST_SLICES = "most_slices"


class Result(StrEnum):
    """What a rule lets be made of a segmentation: the DICOM formats of `medseg.job`."""

    SEG = "seg"
    SR = "sr"


class Priority(StrEnum):
    STAT = "stat"
    ROUTINE = "routine"
    LOW = "low"


class Mode(StrEnum):
    """What happens to a series that matches."""

    ON = "on"
    SHADOW = "shadow"  # compute and keep, do not send
    HOLD = "hold"  # wait for `medseg jobs release`
    OFF = "off"


class AtCap(StrEnum):
    """What happens to a series that is still not known to be complete after `complete.cap_s`."""

    HOLD = "hold"
    INFER = "infer"


@dataclass(frozen=True)
class Condition:
    """One entry of a rule's `when`: holds when any pattern admits any value of what it looks at.

    key: as in the file. subject: a DICOM keyword, or one of CALLED_AE, CALLING_AE, SLICES.
    """

    key: str
    subject: str
    wanted: tuple[Pattern, ...]


CALLED_AE, CALLING_AE, SLICES = "called_ae", "calling_ae", "slices"

# What `when` may ask by a short name. Any other key is a DICOM keyword, and the VR of its value gives the form.
_KEYWORDS = {
    "modality": "Modality",
    "body_part": "BodyPartExamined",
    "series_description": "SeriesDescription",
    "study_description": "StudyDescription",
    "protocol": "ProtocolName",
    "slice_thickness_mm": "SliceThickness",
}
_SUBJECTS = {CALLED_AE: forms.EXACT_AE, CALLING_AE: forms.EXACT_AE, SLICES: forms.NUMBERS}
_VRS = (
    ({"CS", "LO", "SH", "LT", "ST", "UT", "UC", "UR", "PN", "DA", "TM", "DT", "AS"}, forms.GLOB),
    ({"DS", "IS", "FD", "FL", "US", "SS", "UL", "SL", "UV", "SV"}, forms.NUMBERS),
    ({"AE"}, forms.EXACT_AE),
    ({"UI"}, forms.EXACT_UID),
)


@dataclass(frozen=True)
class Rule:
    """What is to be done with a series; the first rule whose conditions all hold decides.

    bundle: a name, a folder, or None for the default bundle that fits.
    send_to: names of peers; None for the caller, where it is a known peer.
    """

    name: Annotated[str, forms.TEXT] = "default"
    when: tuple[Condition, ...] = ()
    select: Annotated[Select, forms.one_of(Select)] = Select.EVERY
    bundle: Annotated[str | None, forms.TEXT] = None
    send_to: Annotated[tuple[str, ...] | None, forms.TEXTS] = None
    results: Annotated[tuple[Result, ...], forms.some_of(Result)] = (Result.SEG, Result.SR)
    priority: Annotated[Priority, forms.one_of(Priority)] = Priority.ROUTINE
    mode: Annotated[Mode, forms.one_of(Mode)] = Mode.ON
    at_cap: Annotated[AtCap, forms.one_of(AtCap)] = AtCap.HOLD
    assume_frame_of_reference: Annotated[bool, forms.FLAG] = False


@dataclass(frozen=True)
class GatewaySettings:
    """Everything `medseg serve` is told. Each key has a default, so that no file is needed."""

    gateway: Gateway = Gateway()
    complete: Complete = Complete()
    limits: Limits = Limits()
    deliver: Deliver = Deliver()
    retain: Retain = Retain()
    peers: tuple[Peer, ...] = ()
    rules: tuple[Rule, ...] = (Rule(),)


@dataclass(frozen=True)
class Reloaded:
    """What a reload came to.

    settings: the new ones, or the old ones where there are `problems`.
    kept: keys whose new value takes a restart; `settings` has their old values.
    """

    settings: GatewaySettings
    problems: tuple[Problem, ...] = ()
    kept: tuple[str, ...] = ()


_NEEDS_RESTART = ("ae_title", "host", "port", "receivers", "http_port", "spool", "database")


def load_settings(path: Path | None) -> GatewaySettings:
    """The settings of a file, or the defaults; relative paths from the file's folder, else the working folder.

    Raises InvalidSettings with all problems at once.
    """
    if path is None:
        return _anchored(GatewaySettings(), Path.cwd())
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise InvalidSettings(str(path), [Problem("", f"cannot be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise InvalidSettings(str(path), [Problem("", f"expected UTF-8 text: {error.reason}")]) from error
    return read_settings(text, path.absolute().parent, str(path))


def reload_settings(path: Path | None, current: GatewaySettings) -> Reloaded:
    """The settings as the file has them now, where it is right; else the current ones and what is wrong."""
    try:
        new = load_settings(path)
    except InvalidSettings as error:
        return Reloaded(current, error.problems)
    held = {key: getattr(current.gateway, key) for key in _NEEDS_RESTART}
    kept = tuple(f"gateway.{key}" for key, value in held.items() if getattr(new.gateway, key) != value)
    return Reloaded(replace(new, gateway=replace(new.gateway, **held)), kept=kept)


def read_settings(text: str, folder: Path, name: str = "medseg.toml") -> GatewaySettings:
    """The settings in a text. folder: where relative paths start; name: for messages.

    Raises InvalidSettings with all problems at once.
    """
    try:
        values, lines = parse(text)
    except NotToml as error:
        raise InvalidSettings(name, [Problem("", f"not TOML: {error}", error.line)]) from error
    reader = _Reader(lines)
    settings = reader.settings(values)
    if reader.problems:
        raise InvalidSettings(name, sorted(reader.problems, key=lambda problem: problem.line or 0))
    return _anchored(settings, folder)


class _Reader:
    """Reads tables into groups, and gathers what is wrong, so that one look at the messages mends the file."""

    def __init__(self, lines: Mapping[Key, int]) -> None:
        self.lines = lines
        self.problems: list[Problem] = []

    def settings(self, values: dict[str, Any]) -> GatewaySettings:
        groups = {"gateway": Gateway, "complete": Complete, "limits": Limits, "deliver": Deliver, "retain": Retain}
        self._refuse_unknown(values, (), (*groups, "peer", "rule"))
        read: dict[str, Any] = {name: self._group(kind, values.get(name, {}), (name,)) for name, kind in groups.items()}
        read["gateway"] = self._admission(read["gateway"], values.get("gateway", {}))
        peers = tuple(self._group(Peer, table, key) for key, table in self._tables(values, "peer"))
        rules = tuple(self._rule(table, key) for key, table in self._tables(values, "rule"))
        settings = GatewaySettings(**read, peers=peers, rules=rules or (Rule(),))
        for key, message in _contradictions(settings):
            self._problem(key, message)
        return settings

    def _admission(self, gateway: Gateway, given: Any) -> Gateway:
        """Who may call, where the file says it by a list, or does not say it."""
        if not isinstance(given, dict) or "allow_any_caller" in given:
            return gateway
        if "allow_callers" not in given and not _is_loopback(gateway.host):
            self._problem(
                ("gateway", "allow_callers"),
                f"expected {CALLERS.allowed}, or allow_any_caller = true, where host is not a loopback address; "
                "found neither",
            )
        return replace(gateway, allow_any_caller="allow_callers" not in given)

    def _rule(self, table: Any, key: Key) -> Rule:
        if not isinstance(table, dict):
            return self._group(Rule, table, key)
        given = {"name": f"rule {int(key[1]) + 1}"} | table
        when: Any = given.pop("when", {})
        return replace(self._group(Rule, given, key), when=self._conditions(when, (*key, "when")))

    def _conditions(self, table: Any, key: Key) -> tuple[Condition, ...]:
        if not isinstance(table, dict):
            self._expected(key, 'a table such as { modality = "MR" }', table)
            return ()
        read = [self._condition(name, value, (*key, name)) for name, value in table.items()]
        return tuple(condition for condition in read if condition)

    def _condition(self, name: str, value: Any, key: Key) -> Condition | None:
        subject = _KEYWORDS.get(name, name)
        form = _SUBJECTS.get(subject) or _form_of_keyword(subject)
        if form is None:
            known = ", ".join((*_KEYWORDS, *_SUBJECTS))
            self._problem(key, f"no such condition: known are {known} and the DICOM keywords of texts and numbers")
            return None
        try:
            items = value if isinstance(value, list) and value else [value]
            return Condition(name, subject, tuple(form.read(item) for item in items))
        except ValueError:
            self._expected(key, form.allowed, value)
            return None

    def _tables(self, values: dict[str, Any], name: str) -> Iterator[tuple[Key, Any]]:
        tables = values.get(name, [])
        if isinstance(tables, list):
            yield from (((name, number), table) for number, table in enumerate(tables))
        else:
            self._problem((name,), f"expected [[{name}]] in two brackets, since there may be several")

    def _group(self, kind: type[T], table: Any, key: Key) -> T:
        """A group from its table. A value that cannot be read is told, and then counts as not given."""
        if not isinstance(table, dict):
            self._expected(key, f"a table [{key[0]}]", table)
            return kind(**_blank(kind))
        known = _forms(kind)
        self._refuse_unknown(table, key, tuple(known))
        read = _blank(kind)
        for name in read.keys() - table.keys():
            self._problem((*key, name), f"expected {known[name].allowed}, found nothing")
        for name in known.keys() & table.keys():
            try:
                read[name] = known[name].read(table[name])
            except ValueError:
                self._expected((*key, name), known[name].allowed, table[name])
        return kind(**read)

    def _refuse_unknown(self, table: dict[str, Any], key: Key, known: tuple[str, ...]) -> None:
        for name in table.keys() - set(known):
            near = difflib.get_close_matches(name, known, 1)
            advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            self._problem((*key, name), f"no such key: {advice}")

    def _expected(self, key: Key, allowed: str, found: Any) -> None:
        self._problem(key, f"expected {allowed}, found {_as_toml(found)}")

    def _problem(self, key: Key, message: str) -> None:
        names = ".".join(part for part in key if isinstance(part, str))
        self.problems.append(Problem(names, message, line_of(self.lines, key)))


def _forms(kind: type[Any]) -> dict[str, Form]:
    """The form of each key of a group, in order."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items() if hasattr(hint, "__metadata__")}


def _blank(kind: type[Any]) -> dict[str, Any]:
    """What stands in for the keys that a file must give, so that the rest of it can be looked at, too."""
    return {one.name: "" for one in fields(kind) if one.default is MISSING}


def _contradictions(settings: GatewaySettings) -> Iterator[tuple[Key, str]]:
    """What each value allows, and all together do not."""
    gateway, deliver = settings.gateway, settings.deliver
    if gateway.port == gateway.http_port:
        yield ("gateway", "http_port"), f"expected another port than gateway.port, found {gateway.port} for both"
    if gateway.allow_any_caller and gateway.allow_callers:
        yield ("gateway", "allow_any_caller"), "expected either allow_any_caller = true or a list in allow_callers"
    retain, late_s = settings.retain, settings.complete.late_s
    if retain.inputs_s < late_s:
        found = f"{retain.inputs_s:g} < {late_s:g}"
        yield ("retain", "inputs_s"), f"expected no less than complete.late_s, found {found}"
    if retain.results_s < retain.inputs_s:
        found = f"{retain.results_s:g} < {retain.inputs_s:g}"
        yield ("retain", "results_s"), f"expected no less than inputs_s, found {found}"
    if deliver.first_retry_s > deliver.longest_retry_s:
        found = f"{deliver.first_retry_s:g} > {deliver.longest_retry_s:g}"
        yield ("deliver", "first_retry_s"), f"expected no more than longest_retry_s, found {found}"
    for number, peer in enumerate(settings.peers):
        yield from ((("peer", number, *key), message) for key, message in _wrong_in_peer(peer, gateway))
    yield from ((("peer", number, "name"), message) for number, message in _repeated(settings.peers))
    yield from ((("rule", number, "name"), message) for number, message in _repeated(settings.rules))
    known = [peer.name for peer in settings.peers]
    for number, rule in enumerate(settings.rules):
        for name in rule.send_to or ():
            if name not in known:
                peers = f"the peers are {', '.join(known)}" if known else "there is no [[peer]]"
                yield ("rule", number, "send_to"), f"expected names of peers, found {_as_toml(name)}: {peers}"


def _wrong_in_peer(peer: Peer, gateway: Gateway) -> Iterator[tuple[Key, str]]:
    dimse = {"ae_title": peer.ae_title, "host": peer.host, "port": peer.port}
    missing = [name for name, value in dimse.items() if value is None]
    if missing and not peer.dicomweb:
        yield (), f"expected ae_title, host and port, or dicomweb; found no {', '.join(missing)}"
    if (peer.host, peer.port) == (gateway.host, gateway.port):
        yield ("port",), f"expected another place than this gateway's own, found {peer.host}:{peer.port}"


def _repeated(named: Iterable[Peer | Rule]) -> Iterator[tuple[int, str]]:
    for (_, one), (number, other) in combinations(enumerate(named), 2):
        if one.name == other.name != "":
            yield number, f"expected a name of its own, found {_as_toml(one.name)} twice"


def _form_of_keyword(keyword: str) -> Form | None:
    """The form of a condition on a DICOM keyword; None where there is no such keyword or its values do not compare."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        return None
    return next((form for vrs, form in _VRS if set(dictionary_VR(tag).split(" or ")) <= vrs), None)


def _anchored(settings: GatewaySettings, folder: Path) -> GatewaySettings:
    """The same settings with relative paths made absolute."""
    gateway = settings.gateway
    database = re.sub(r"^sqlite:///(?=[^/])", lambda _: f"sqlite:///{folder}/", gateway.database)
    rules = tuple(
        replace(rule, bundle=str(folder / Path(rule.bundle).expanduser()))
        if rule.bundle and "/" in rule.bundle
        else rule
        for rule in settings.rules
    )
    return replace(settings, gateway=replace(gateway, spool=folder / gateway.spool, database=database), rules=rules)


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def _is_at(host: str, address: str, resolve: Resolve) -> bool:
    """Whether a peer that calls from an address is the host that was named."""
    return any(_address(one) == _address(address) for one in ([host] if _address(host) else resolve(host)))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An IP address, one of IPv4 that came through an IPv6 socket as itself; None for a name."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _as_toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
