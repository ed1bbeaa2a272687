"""`medseg.toml` read into the groups of `gateway.settings`.

A file with mistakes gives all of them at once, each with its line, its key and the allowed form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

from gateway.settings.model import (
    BY_DIMSE,
    CALLERS,
    CHANNELS,
    GROUPS,
    LISTS,
    ChannelWords,
    Gateway,
    GatewaySettings,
    Peer,
    Rule,
    Select,
)
from gateway.settings.toml_lines import Key, NotToml, line_of, parse
from gateway.settings.when import read_when
from medseg.allowed import forms_of, read_fields, shown, unknown_keys
from medseg.errors import UsageError

T = TypeVar("T")


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
        for name, advice in unknown_keys(values, (*GROUPS, *LISTS, CHANNELS)):
            self._problem((name,), f"no such key: {advice}")
        read: dict[str, Any] = {name: self._group(kind, values.get(name, {}), (name,)) for name, kind in GROUPS.items()}
        read["gateway"] = self._admission(read["gateway"], values.get("gateway", {}))
        peers = tuple(self._peer(table, key) for key, table in self._tables(values, "peer"))
        rules = tuple(self._rule(table, key) for key, table in self._tables(values, "rule"))
        words = self._words(values.get(CHANNELS, {}))
        settings = GatewaySettings(**read, peers=peers, rules=rules or (Rule(),), channels=words)
        for key, message in _contradictions(settings):
            self._problem(key, message)
        return settings

    def _admission(self, gateway: Gateway, given: Any) -> Gateway:
        """Who may call, where the file says it by a list, or does not say it."""
        if not isinstance(given, dict) or "allow_any_caller" in given:
            return gateway
        if "allow_callers" not in given and not gateway.is_local:
            self._problem(
                ("gateway", "allow_callers"),
                f"expected {CALLERS.allowed}, or allow_any_caller = true, where host is not a loopback address; "
                "found neither",
            )
        return replace(gateway, allow_any_caller="allow_callers" not in given)

    def _peer(self, table: Any, key: Key) -> Peer:
        if isinstance(table, dict):
            web, forms = "dicomweb" in table, forms_of(Peer)
            for name in BY_DIMSE:
                if not web and name not in table:
                    self._problem((*key, name), f"expected {forms[name].allowed}, found nothing")
                elif web and name in table and name != "ae_title":
                    self._problem((*key, name), "expected either dicomweb or host and port, found both")
        return self._group(Peer, table, key)

    def _rule(self, table: Any, key: Key) -> Rule:
        if not isinstance(table, dict):
            return self._group(Rule, table, key)
        given: dict[str, Any] = {"name": f"rule {int(key[1]) + 1}"} | table
        when: Any = given.pop("when", {})
        bundles: Any = given.get("bundle")
        beside: tuple[str, ...] = ()
        if isinstance(bundles, list) and bundles and all(isinstance(one, str) and one.strip() for one in bundles):
            given["bundle"], *others = bundles
            beside = tuple(others)
        rule = replace(self._group(Rule, given, key), beside=beside)
        return replace(rule, when=read_when(when, (*key, "when"), self._problem))

    def _words(self, bundles: Any) -> dict[str, dict[str, ChannelWords]]:
        """[channels.BUNDLE.NAME], by both."""
        words: dict[str, dict[str, ChannelWords]] = {}
        for bundle, channels in self._named(bundles, (CHANNELS,)):
            for name, table in self._named(channels, (CHANNELS, bundle)):
                words.setdefault(bundle, {})[name] = self._group(ChannelWords, table, (CHANNELS, bundle, name))
        return words

    def _named(self, table: Any, key: Key) -> Iterator[tuple[str, Any]]:
        if isinstance(table, dict):
            yield from table.items()
        else:
            self._expected(key, f"tables [{CHANNELS}.BUNDLE.NAME]", table)

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
        read = read_fields(kind, table, lambda name, why: self._problem((*key, name), why))
        return kind(**_blank(kind) | read)

    def _expected(self, key: Key, allowed: str, found: Any) -> None:
        self._problem(key, f"expected {allowed}, found {shown(found)}")

    def _problem(self, key: Key, message: str) -> None:
        names = ".".join(part for part in key if isinstance(part, str))
        self.problems.append(Problem(names, message, line_of(self.lines, key)))


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
        called = [Path(one).name for one in (rule.bundle or "", *rule.beside)]
        if len(set(called)) < len(called):
            yield ("rule", number, "bundle"), f"expected bundles of different names, found {', '.join(called)}"
        if rule.prefer and rule.select is not Select.EVERY:
            yield ("rule", number, "prefer"), f'expected either prefer or select = "{rule.select}", found both'
        for name in rule.send_to or ():
            if name not in known:
                peers = f"the peers are {', '.join(known)}" if known else "there is no [[peer]]"
                yield ("rule", number, "send_to"), f"expected names of peers, found {shown(name)}: {peers}"


def _wrong_in_peer(peer: Peer, gateway: Gateway) -> Iterator[tuple[Key, str]]:
    if peer.dicomweb is None and (peer.host, peer.port) == (gateway.host, gateway.port):
        yield ("port",), f"expected another place than this gateway's own, found {peer.host}:{peer.port}"


def _repeated(named: Iterable[Peer | Rule]) -> Iterator[tuple[int, str]]:
    for (_, one), (number, other) in combinations(enumerate(named), 2):
        if one.name == other.name != "":
            yield number, f"expected a name of its own, found {shown(one.name)} twice"


def _anchored(settings: GatewaySettings, folder: Path) -> GatewaySettings:
    """The same settings with relative paths made absolute."""
    gateway = settings.gateway
    database = re.sub(r"^sqlite:///(?=[^/])", lambda _: f"sqlite:///{folder}/", gateway.database)
    rules = tuple(
        replace(
            rule,
            bundle=rule.bundle and _in(folder, rule.bundle),
            beside=tuple(_in(folder, one) for one in rule.beside),
        )
        for rule in settings.rules
    )
    return replace(settings, gateway=replace(gateway, spool=folder / gateway.spool, database=database), rules=rules)


def _in(folder: Path, bundle: str) -> str:
    """A bundle by its name, or its folder."""
    return str(folder / Path(bundle).expanduser()) if "/" in bundle else bundle
