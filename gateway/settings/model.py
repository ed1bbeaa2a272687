"""What an administrator decides: the groups of `medseg.toml`, small and frozen (`gateway.settings.read` reads them).

Every key stands in one line here, with its form (what is allowed, in words and as a check) and default, and in the
docstring of its group with its meaning. docs/settings.md and `medseg serve --help` are made of these (`reference`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

from gateway.settings import values
from medseg.allowed import FLAG, TEXT, TEXTS, Allowed, ae_title, one_of, several, some_of, text
from medseg.conditions.prefer import PREFERENCE
from medseg.conditions.terms import Term

#: The addresses behind a host name.
Resolve: TypeAlias = Callable[[str], Collection[str]]


@dataclass(frozen=True)
class Caller:
    """Who may call: an AE title, from any host or from one. host: an address or a name."""

    ae_title: str
    host: str | None = None

    @classmethod
    def read(cls, value: Any) -> Caller:
        """From "AE" or "AE@host"; the last @ divides, since an AE title may hold one itself. Raises ValueError."""
        title, at, host = text(value).rpartition("@")
        return cls(ae_title(title), values.host(host)) if at else cls(ae_title(value))


CALLERS = Allowed('a list of "AE" or "AE@host"', several(Caller.read))


#: Where the web process listens, and nowhere else: what it tells is for this machine.
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Gateway:
    """Who we are, where we listen, and who may call.

    ae_title: Our AE title: what others call, and the name by which we call them.
    host: The address to listen on. Example: "0.0.0.0"
    port: The DICOM port. Example: 104
    receivers: How many processes receive; they share the port. Example: 4
    http_port: The port of the pages, of health and metrics, on 127.0.0.1.
    spool: Where images and results are kept; a relative path starts at the file. Example: "/var/lib/medseg/spool"
    database: The ledger. Example: "sqlite:////var/lib/medseg/ledger.db"
    allow_callers: Who may call: AE titles, each from any host or from one. Example: ["PACS@10.0.0.5", "CT01"]
    allow_any_caller: Whether anybody may call. Default: true without `allow_callers` where `host` is a loopback
        address; elsewhere one of the two must be given. Example: true
    """

    ae_title: Annotated[str, values.AE_TITLE] = "MEDSEG"
    host: Annotated[str, values.HOST] = "127.0.0.1"
    port: Annotated[int, values.PORT] = 11112
    receivers: Annotated[int, values.COUNT] = 2
    http_port: Annotated[int, values.PORT] = 8090
    spool: Annotated[Path, values.FOLDER] = Path("spool")
    database: Annotated[str, values.DATABASE] = "sqlite:///ledger.db"
    allow_callers: Annotated[tuple[Caller, ...], CALLERS] = ()
    allow_any_caller: Annotated[bool, FLAG] = True

    @property
    def is_local(self) -> bool:
        """Whether nobody from outside this machine can call."""
        address = _address(self.host)
        return self.host.lower() == "localhost" if address is None else address.is_loopback

    def admits(self, calling_ae: str, address: str, resolve: Resolve) -> bool:
        """Whether a caller may call from that IP address. `resolve` is asked for the names in "AE@name" only."""
        return self.allow_any_caller or any(
            caller.ae_title == calling_ae.strip(" ") and (caller.host is None or _is_at(caller.host, address, resolve))
            for caller in self.allow_callers
        )


@dataclass(frozen=True)
class Completion:
    """When a series is taken as complete although nobody has said so.

    quiet_s: How long nothing more must come once its sender has ended its associations.
    quiet_gap_s: The same where a slice is missing between others.
    quiet_open_s: The same while its sender holds an association open.
    quiet_abort_s: The same where its sender aborted.
    quiet_late_s: Up to where `quiet_s` grows after images that came late.
    cap_s: When waiting ends in any case: the `at_cap` of the rule says what happens then.
    late_s: How long after a result images still come late, and make a new result of their series.
    """

    quiet_s: Annotated[float, values.SECONDS] = 3.0
    quiet_gap_s: Annotated[float, values.SECONDS] = 30.0
    quiet_open_s: Annotated[float, values.SECONDS] = 60.0
    quiet_abort_s: Annotated[float, values.SECONDS] = 60.0
    quiet_late_s: Annotated[float, values.SECONDS] = 60.0
    cap_s: Annotated[float, values.SECONDS] = 1800.0
    late_s: Annotated[float, values.SECONDS] = 86400.0


@dataclass(frozen=True)
class Limits:
    """What may be used: associations, and the disk of the spool.

    associations: How many associations may be open at once.
    per_caller: How many of them by one calling AE title.
    disk_used_percent: From how full a disk on images are refused.
    disk_free_gb: Below how much free room images are refused.
    """

    associations: Annotated[int, values.COUNT] = 25
    per_caller: Annotated[int, values.COUNT] = 10
    disk_used_percent: Annotated[float, values.PERCENT] = 90.0
    disk_free_gb: Annotated[float, values.GIGABYTES] = 5.0


@dataclass(frozen=True)
class Deliver:
    """How results leave.

    first_retry_s: The pause after a first failure; it doubles with each.
    longest_retry_s: The longest pause.
    give_up_s: How long a delivery is tried; then it is a dead letter.
    commitment: Whether destinations are asked for storage commitment; else they are asked by C-FIND.
    """

    first_retry_s: Annotated[float, values.SECONDS] = 5.0
    longest_retry_s: Annotated[float, values.SECONDS] = 600.0
    give_up_s: Annotated[float, values.SECONDS] = 86400.0
    commitment: Annotated[bool, FLAG] = True


@dataclass(frozen=True)
class Retain:
    """How long things are kept after all that belongs to their series was done.

    inputs_s: Images: no less than `complete.late_s`.
    results_s: Results, and all that is known of the series: no less than `inputs_s`.
    """

    inputs_s: Annotated[float, values.SECONDS] = 259200.0
    results_s: Annotated[float, values.SECONDS] = 2592000.0


@dataclass(frozen=True, slots=True)
class Destination:
    """Who is called by DIMSE, and under which name we call."""

    ae_title: str
    host: str
    port: int
    calling_ae: str = "MEDSEG"

    def __str__(self) -> str:
        return f"{self.ae_title}@{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class WebService:
    """Who is called by DICOMweb. url: the service's root. query: as `Peer` has it."""

    url: str
    query: bool | None = None

    def __str__(self) -> str:
        return self.url


#: What a peer has to have to be called by DIMSE.
BY_DIMSE: Final = ("ae_title", "host", "port")


@dataclass(frozen=True)
class Peer:
    """Somebody to send to, by DIMSE or by DICOMweb.

    name: What rules call it. Example: "pacs"
    ae_title: Its AE title; with `dicomweb`, the one by which it sends, where it does. Default: must be given without
        `dicomweb`. Example: "PACS"
    host: Where it listens. Default: must be given without `dicomweb`. Example: "10.0.0.5"
    port: Its DICOM port. Default: must be given without `dicomweb`. Example: 104
    query: Whether it is asked by C-FIND how many images a series has: always, and of the study, too; or never. With
        `dicomweb`: whether it is asked by QIDO-RS for what it stored. Default: of the series that it sends itself; for
        what its answer does not name. Example: true
    dicomweb: The root of its DICOMweb service, to which results go by STOW-RS, in place of host and port. Default:
        none. Example: "http://127.0.0.1:8042/dicom-web"
    """

    name: Annotated[str, TEXT]
    ae_title: Annotated[str, values.AE_TITLE] = ""
    host: Annotated[str, values.HOST] = ""
    port: Annotated[int, values.PORT] = 0
    query: Annotated[bool | None, FLAG] = None
    dicomweb: Annotated[str | None, values.WEB_ADDRESS] = None


PREFERENCES = Allowed(f"a list of {PREFERENCE.allowed}", several(PREFERENCE.read, least=1))


#: A list is read into `bundle` and `beside` (`gateway.settings.read`).
BUNDLE = Allowed("a text, or a list of them", text)


class Select(StrEnum):
    """Which of a study's series that match a rule are segmented."""

    EVERY = "every"
    THINNEST = "thinnest"
    MOST_SLICES = "most_slices"


class ResultForm(StrEnum):
    """What a rule lets be made of a segmentation: the DICOM formats of `medseg.job` that are one object each."""

    SEG = "seg"
    LABELMAP = "labelmap"
    SR = "sr"
    KO = "ko"
    RTSTRUCT = "rtstruct"


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


class OnFailure(StrEnum):
    """How a study ends of which nothing that a rule takes was segmented."""

    REPORT = "report"
    PAGE = "page"
    NONE = "none"


class AtCap(StrEnum):
    """What happens to a series that is still not known to be complete after `complete.cap_s`."""

    HOLD = "hold"
    INFER = "infer"


@dataclass(frozen=True)
class Rule:
    """What is to be done with a series; the first rule whose conditions all hold decides.

    name: What it is called in jobs and logs. Default: `rule 1`, `rule 2`, … by its place. Example: "livers"
    when: The conditions that must all hold: see below. Default: every series of images. Example: { modality = "CT"
        }
    select: Which of a study's series that match are segmented: each, that of the thinnest slices, that of the most.
    prefer: One of them is segmented: what goes before what, by one after the other until one is left; then the lowest
        series number. Default: as `select` says. Example: ["ImageType:PRIMARY", "thinnest", "latest"]
    bundle: A name, or a folder: with a slash; a relative path starts at the file. Of a list each gives a result, and a
        series is decoded once. Default: the default bundle that fits. Example: "hippocampus_t1_unet3d"
    beside: The others of a list of bundles.
    send_to: The peers that get the results, by name. Default: the caller, where it is a known peer. Example:
        ["pacs"]
    results: What is made: a segmentation, or one as a label map, a structured report, a key object selection, a
        structure set (results.md). Example: ["seg", "sr", "rtstruct"]
    priority: What goes first; work that has waited long goes before what came later. Example: "stat"
    mode: `shadow` computes, keeps and sends nothing; `hold` waits for `medseg jobs release`; `off` does nothing.
        Example: "shadow"
    at_cap: What happens to a series that is not known to be complete after `complete.cap_s`: held, or segmented as
        it is. Example: "infer"
    on_failure: What says so where nothing of a study that the rule takes could be segmented: a report at the
        destinations of its results, or the page alone, or nothing. Example: "page"
    assume_frame_of_reference: Whether a series without Frame of Reference UID is taken, with one made of its own
        UID. Example: true
    channels_within_s: How long a study is waited for in which series for channels of the bundle are missing, from the
        first that is complete; then it is held, or done without those that are optional.
    """

    name: Annotated[str, TEXT] = "default"
    when: tuple[Term, ...] = ()
    select: Annotated[Select, one_of(Select)] = Select.EVERY
    prefer: Annotated[tuple[str, ...], PREFERENCES] = ()
    bundle: Annotated[str | None, BUNDLE] = None
    beside: tuple[str, ...] = ()
    send_to: Annotated[tuple[str, ...] | None, TEXTS] = None
    results: Annotated[tuple[ResultForm, ...], some_of(ResultForm)] = (ResultForm.SEG, ResultForm.SR)
    priority: Annotated[Priority, one_of(Priority)] = Priority.ROUTINE
    mode: Annotated[Mode, one_of(Mode)] = Mode.ON
    at_cap: Annotated[AtCap, one_of(AtCap)] = AtCap.HOLD
    on_failure: Annotated[OnFailure, one_of(OnFailure)] = OnFailure.REPORT
    assume_frame_of_reference: Annotated[bool, FLAG] = False
    channels_within_s: Annotated[float, values.SECONDS] = 3600.0

    @property
    def each(self) -> tuple[Rule, ...]:
        """The rule once for each of its bundles."""
        if not self.beside:
            return (self,)
        named = (self.bundle, *self.beside)
        return tuple(replace(self, bundle=bundle, beside=()) for bundle in named)

    @property
    def takes_one(self) -> bool:
        """Whether only one of a study's series that match is segmented."""
        return self.select is not Select.EVERY or bool(self.prefer)


@dataclass(frozen=True)
class ChannelWords:
    """What a site calls the series that are a channel of a bundle: by the names of both.

    also: Series descriptions, beside what the bundle says and before it; * stands for anything. Example: ["*ax 3d
        brain +c*"]
    """

    also: Annotated[tuple[str, ...], TEXTS] = ()


@dataclass(frozen=True)
class GatewaySettings:
    """Everything `medseg serve` is told. Each key has a default, so that no file is needed."""

    gateway: Gateway = Gateway()
    complete: Completion = Completion()
    limits: Limits = Limits()
    deliver: Deliver = Deliver()
    retain: Retain = Retain()
    peers: tuple[Peer, ...] = ()
    rules: tuple[Rule, ...] = (Rule(),)
    channels: Mapping[str, Mapping[str, ChannelWords]] = field(default_factory=dict)

    def destinations(self) -> dict[str, Destination]:
        """How each peer is called that is called by DIMSE, by its name."""
        return {
            peer.name: Destination(peer.ae_title, peer.host, peer.port, self.gateway.ae_title)
            for peer in self.peers
            if peer.dicomweb is None
        }

    def services(self) -> dict[str, WebService]:
        """The same of those that are called by DICOMweb."""
        return {peer.name: WebService(peer.dicomweb, peer.query) for peer in self.peers if peer.dicomweb is not None}


#: The tables of a file: those of which there is one, and those of which there may be several.
GROUPS: Final = {"gateway": Gateway, "complete": Completion, "limits": Limits, "deliver": Deliver, "retain": Retain}
LISTS: Final = {"peer": Peer, "rule": Rule}
#: ... and one for each channel of each bundle.
CHANNELS: Final = "channels"
WORDS: Final = {f"{CHANNELS}.BUNDLE.NAME": ChannelWords}


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
