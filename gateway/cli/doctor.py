"""The gateway's half of `medseg doctor` (entry point `medseg.checks`): settings, ports, spool, ledger, peers."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.options import settings_file
from medseg.cli.doctor import Check

if TYPE_CHECKING:
    from gateway.settings.model import Destination, GatewaySettings, Peer, Rule, WebService

SEG = "1.2.840.10008.5.1.4.1.1.66.4"
SR = "1.2.840.10008.5.1.4.1.1.88.34"
RLE = "1.2.840.10008.1.2.5"
REASON = "1.2.840.10008.5.1.4.1.1.88.22"  # Enhanced SR: why nothing was segmented
LABELMAP = "1.2.840.10008.5.1.4.1.1.66.7"
KINDS = {  # of results
    "seg": ("DICOM-SEG", SEG),
    "labelmap": ("label maps in RLE", LABELMAP),
    "sr": ("structured reports", SR),
    "ko": ("key objects", "1.2.840.10008.5.1.4.1.1.88.59"),
    "rtstruct": ("structure sets", "1.2.840.10008.5.1.4.1.1.481.3"),
}
FILES_BESIDES = 256  # of ledger, libraries and logs


def checks(config: Path | None = None) -> Iterator[Check]:
    """What `medseg serve` needs, in the order in which it needs it."""
    from gateway.settings.read import InvalidSettings, load_settings

    path = settings_file(config)
    try:
        settings = load_settings(path)
    except InvalidSettings as error:
        yield Check("settings", False, str(error), "mend the lines that are named")
        return
    yield Check("settings", True, str(path or "none: the defaults hold"))
    runs = _runs(settings.gateway.spool)
    yield _port("port", settings.gateway.host, settings.gateway.port, runs)
    yield _port("http_port", "127.0.0.1", settings.gateway.http_port, runs)
    yield _spool(settings.gateway.spool)
    yield _disk(settings)
    yield _ledger(settings.gateway.database)
    yield _descriptors(settings)
    yield from _callers(settings)
    yield from _settings(settings)
    for name, service in settings.services().items():
        yield _web_peer(name, service)
    destinations = settings.destinations()
    for peer in settings.peers:
        if peer.name not in destinations:
            continue
        sending = _sending_to(peer, settings)
        results = {str(result) for rule in sending for result in rule.results}
        reports = any(rule.on_failure == "report" for rule in sending)
        yield _peer(peer.name, destinations[peer.name], results, reports=reports)


def _settings(settings: GatewaySettings) -> Iterator[Check]:
    """Peers and rules that are allowed and cannot work; a line for each rule that can."""
    from gateway.decide import doubts

    bundles_of = doubts.loading()
    found = list(doubts.doubts(settings, bundles_of))
    for doubt in found:
        yield Check(doubt.about, not doubt.broken, doubt.found, doubt.advice, doubtful=not doubt.broken)
    for rule in settings.rules:
        if doubts.called(rule) not in {doubt.about for doubt in found if doubt.broken}:
            by = "" if rule.mode == "off" else f", by {' or '.join(one.name for one in bundles_of(rule))}"
            yield Check(doubts.called(rule), True, f"mode {rule.mode}{by}", details=(_asked(rule),))


def _asked(rule: Rule) -> str:
    """What a rule asks for, as it was understood."""
    from medseg.conditions.terms import in_words

    return f"when {in_words(rule.when)}" if rule.when else "every series of images"


def _callers(settings: GatewaySettings) -> Iterator[Check]:
    """Whether the hosts that callers are tied to have an address."""
    for caller in settings.gateway.allow_callers:
        try:
            socket.getaddrinfo(caller.host or "127.0.0.1", None)
        except OSError as error:
            advice = "name an address, or a host that this machine can look up, in gateway.allow_callers"
            yield Check(f"caller {caller.ae_title}", False, f"{caller.host}: {error.strerror}", advice)


def _runs(spool: Path) -> bool:
    """Whether a service holds the lock of a spool."""
    try:
        with (spool / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _port(key: str, host: str, port: int, runs: bool) -> Check:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
            tried.listen()
        except OSError as error:
            if error.errno == errno.EADDRINUSE and runs:
                return Check(key, True, f"{host}:{port} in use by medseg serve")
            advice = f"change gateway.{key} in the settings, or end what listens there"
            return Check(key, False, f"{host}:{port}: {error.strerror}", advice)
    return Check(key, True, f"{host}:{port} free")


def _spool(spool: Path) -> Check:
    """Whether files can be written and synced: in the spool, or where it would be made."""
    folder = _existing(spool)
    where = str(spool) if folder == spool else f"{spool}, to be made in {folder}"
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"medseg")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        advice = "let the user of medseg serve write there, or change gateway.spool in the settings"
        return Check("spool", False, f"{where}: {error.strerror}", advice)
    return Check("spool", True, where)


def _disk(settings: GatewaySettings) -> Check:
    limits, usage = settings.limits, shutil.disk_usage(_existing(settings.gateway.spool))
    used_percent, free_gb = 100 * (usage.total - usage.free) / usage.total, usage.free / 1e9
    ok = used_percent < limits.disk_used_percent and free_gb >= limits.disk_free_gb
    found = f"{used_percent:.0f} % used, {free_gb:.1f} GB free"
    allowed = f"{limits.disk_used_percent:g} % used or {limits.disk_free_gb:g} GB free"
    return Check("spool's disk", ok, found, f"images are refused at {allowed}: make room, or change [limits]")


def _ledger(url: str) -> Check:
    from gateway.ledger.ledger import LedgerUnavailable, revisions

    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        return Check("ledger", True, "none yet: medseg serve makes it")
    try:
        found, newest = revisions(url)
    except LedgerUnavailable as error:
        return Check("ledger", False, str(error), "see that the database runs, and that gateway.database is right")
    if found != newest:
        advice = "restart medseg serve: it migrates an older ledger"
        return Check("ledger", False, f"revision {found}, expected {newest}", advice)
    return Check("ledger", True, f"revision {found}")


def _descriptors(settings: GatewaySettings) -> Check:
    """Each connection has a socket and a file; connections beyond the limit are looked at, too, before they are
    rejected."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * 2 * settings.limits.associations + FILES_BESIDES
    advice = f"raise it to {needed} or more: LimitNOFILE in the systemd unit, or ulimit -n"
    return Check("file descriptors", limit >= needed, str(limit), advice)


def _sending_to(peer: Peer, settings: GatewaySettings) -> list[Rule]:
    """The rules whose results may go to a peer."""
    sending = [rule for rule in settings.rules if rule.mode in ("on", "hold")]
    return [rule for rule in sending if rule.send_to is None or peer.name in rule.send_to]


def _web_peer(name: str, service: WebService) -> Check:
    """Whether a service answers QIDO-RS: nothing is stored to see."""
    from gateway.dicomweb.client import WebClient

    answer = WebClient(service.url, connect_s=5, answer_s=5).reach()
    ok = answer.status is not None and 200 <= answer.status < 300
    advice = "see that it runs, and that the address in dicomweb is that of its DICOMweb service"
    return Check(f"peer {name}", ok, f"{service}: {answer.words}", advice)


def _peer(name: str, destination: Destination, results: set[str], *, reports: bool) -> Check:
    """Whether a peer answers C-ECHO, takes what rules may send to it, and can say that it has it. reports: it is told
    where nothing was segmented."""
    from gateway.dimse import scu
    from gateway.dimse.commitment import COMMIT
    from gateway.dimse.scu import FIND, VERIFY, NoAssociation, Proposal, RequestorTimeouts

    wanted = {word: uid for kind, (word, uid) in KINDS.items() if kind in results}
    what, asked = f"peer {name}", dict.fromkeys((VERIFY, SEG, SR, REASON, COMMIT, FIND, *wanted.values()))
    proposals = [Proposal(one, (RLE,)) if one == LABELMAP else Proposal(one) for one in asked]
    try:
        with scu.associate(destination, proposals, RequestorTimeouts(connect_s=5, acse_s=5, dimse_s=5)) as link:
            accepted = link.accepted
            answers = VERIFY in accepted and link.echo() == 0x0000
    except NoAssociation as error:
        advice = "see that it runs, that host and port are right, and that it knows our AE title"
        return Check(what, False, str(error), f"{advice} ({destination.calling_ae})")
    if not answers:
        return Check(what, False, f"{destination}: no answer to C-ECHO", "see the peer's log")
    refused = [word for word, uid in wanted.items() if uid not in accepted]
    checked = "storage commitment" if COMMIT in accepted else "C-FIND" if FIND in accepted else "nothing"
    if refused:
        advice = "let it accept them, or leave them out of the results of rules that send to it"
        return Check(what, False, f"{destination}: takes no {' and no '.join(refused)}", advice)
    takes = f"takes {' and '.join(wanted)}" if wanted else "no rule sends to it"
    if reports and REASON not in accepted:
        found = f"{destination}: {takes}, confirms by {checked}; takes no Enhanced SR, which tells what failed"
        return Check(what, True, found, 'let it accept them, or set on_failure = "page" in the rules', doubtful=True)
    return Check(what, True, f"{destination}: {takes}, confirms by {checked}")


def _existing(folder: Path) -> Path:
    """A folder, or the nearest above it that is there."""
    return next(one for one in (folder, *folder.absolute().parents) if one.is_dir())
