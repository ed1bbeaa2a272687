"""QIDO-RS (PS3.18 10.6): what is here, searched for by its attributes. The study that was heard of last comes first."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import islice
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query, Request
from pydicom.tag import Tag
from starlette.responses import Response

from gateway.dicomweb.dataset_json import Json, element_json, keyword_of, tag_of, value
from gateway.dicomweb.media import DICOM_JSON, JSON, Offer
from gateway.ledger import holdings, patients
from gateway.ledger import series as series_rows
from gateway.web.dicomweb.attributes import ALL, INSTANCE, SERIES, STUDY
from gateway.web.dicomweb.holdings import Held, of_study
from gateway.web.dicomweb.matching import Key, all_match, key_of, wrong_in
from gateway.web.dicomweb.places import Place, accepted, site_of
from gateway.web.dicomweb.problems import Problem
from gateway.web.site import Site
from medseg.dicom.encoding import find_encoding
from medseg.dicom.headers import MALFORMED, read_header

router = APIRouter(tags=["search"])
MOST: Final = 1000  # in one answer
LONGEST_KEY: Final = 4096
LONGEST_PATTERN: Final = 256  # UIDs are compared, all else may be a pattern
STUDY_UID, SERIES_UID, INSTANCE_UID, CLASS_UID = "0020000D", "0020000E", "00080018", "00080016"
AVAILABILITY, RETRIEVE_URL, SYNTAXES = "00080056", "00081190", "00083002"
MODALITY, MODALITIES, CLASSES = "00080060", "00080061", "00080062"
SERIES_IN_STUDY, INSTANCES_IN_STUDY, INSTANCES_IN_SERIES = "00201206", "00201208", "00201209"
SEARCHED: Final = frozenset((*ALL, MODALITIES, CLASSES))
#: Of ours, and not attributes.
PARAMETERS: Final = ("limit", "offset", "fuzzymatching", "includefield", "accept", "charset")
_FUZZY = '299 medseg "The fuzzymatching parameter is not supported. Only literal matching has been performed."'
_MORE = '299 medseg "There are more results: ask again with an offset."'
_STOPPED = '299 medseg "{} studies are left out: their images name two patients (`medseg studies`)."'


@dataclass(frozen=True)
class Search:
    """What is searched for. more: other attributes to be answered with. everything: all that are known."""

    keys: tuple[Key, ...]
    limit: int
    offset: int
    more: tuple[str, ...]
    everything: bool
    fuzzy: bool

    def uids(self, name: str) -> tuple[str, ...] | None:
        """The UIDs that an attribute may have; None where it may have any."""
        return next((key.listed for key in self.keys if key.path == (name,) and key.listed), None)


def searched(
    request: Request,
    limit: Annotated[int, Query(ge=0, le=1 << 31)] = MOST,
    offset: Annotated[int, Query(ge=0, le=1 << 31)] = 0,
    fuzzymatching: bool = False,
    includefield: Annotated[list[str] | None, Query()] = None,
) -> Search:
    """From the parameters of a request. Raises Problem."""
    fields = [one.strip() for text in includefield or () for one in text.split(",") if one.strip()]
    more = [tag_of(one.rsplit(".", 1)[0] if "." in one else one) for one in fields if one != "all"]
    if None in more:
        raise Problem(HTTPStatus.BAD_REQUEST, "includefield: expected all, or keywords or tags of attributes (PS3.6)")
    keys = [_key(name, wanted) for name, wanted in request.query_params.multi_items() if name not in PARAMETERS]
    names = tuple(f"{int(tag):08X}" for tag in more if tag is not None)
    return Search(tuple(keys), min(limit, MOST), offset, names, "all" in fields, fuzzymatching)


def _key(name: str, wanted: str) -> Key:
    key = key_of(name, wanted)
    if key is None:
        raise Problem(HTTPStatus.BAD_REQUEST, "expected keywords or tags of attributes (PS3.6) as parameters")
    keyword = keyword_of(key.path[0])
    if key.path[0] not in SEARCHED:
        known = ", ".join(sorted(keyword_of(one) for one in SEARCHED))
        raise Problem(HTTPStatus.BAD_REQUEST, f"{keyword} cannot be searched for: expected one of {known}")
    why = wrong_in(key)
    if len(wanted) > (LONGEST_KEY if key.vr == "UI" else LONGEST_PATTERN):
        why = "expected a shorter value"
    if why:
        raise Problem(HTTPStatus.BAD_REQUEST, f"{keyword}: {why}")
    return key


@dataclass
class Finding:
    """What is found, as it is looked for. stopped: studies of two patients, which are left out."""

    site: Site
    place: Place
    search: Search
    stopped: set[str] = field(default_factory=set)

    def studies(self) -> Iterator[Json]:
        for objects in self._studies():
            found = self._matched(objects[0], self._of_study(objects))
            if found is not None:
                yield self._told(found, objects[0], STUDY)

    def series(self, study_uid: str | None) -> Iterator[Json]:
        levels = (*SERIES, STUDY_UID) if study_uid else (*STUDY, *SERIES)
        for objects in self._studies(study_uid):
            whole = self._of_study(objects) if study_uid is None else {}
            for some in _by_series(objects):
                found = self._matched(some[0], whole | self._of_series(some))
                if found is not None:
                    yield self._told(found, some[0], levels)

    def instances(self, study_uid: str | None, series_uid: str | None) -> Iterator[Json]:
        levels = (*INSTANCE, SERIES_UID, STUDY_UID)
        levels = levels if series_uid else (*SERIES, *levels) if study_uid else ALL
        for objects in self._studies(study_uid, series_uid):
            for some in _by_series(objects):
                whole = self._of_series(some) if series_uid is None else {}
                for one in some:
                    found = self._matched(one, whole | self._of_instance(one))
                    if found is not None:
                        yield self._told(found, one, levels)

    def _studies(self, study_uid: str | None = None, series_uid: str | None = None) -> Iterator[list[Held]]:
        """The objects of each study that may match."""
        wanted = self.search.uids(STUDY_UID)
        with self.site.ledger.read() as db:
            if study_uid is not None:
                uids = [study_uid]
            elif wanted is not None:
                uids = list(dict.fromkeys(wanted))
            elif (instances := self.search.uids(INSTANCE_UID)) is not None:
                uids = holdings.studies_of_instances(db, list(instances))
            else:
                uids = series_rows.latest_studies(db, None)
        for uid in uids:
            with self.site.ledger.read() as db:
                objects = of_study(self.site, db, uid, series_uid)
                stopped = patients.is_stopped(db, uid)
            if stopped:
                self.stopped.add(uid)
            elif objects:
                yield objects

    def _matched(self, one: Held, computed: Json) -> Json | None:
        uids = {STUDY_UID: value("UI", one.study_uid), SERIES_UID: value("UI", one.series_uid)}
        uids |= {INSTANCE_UID: value("UI", one.sop_instance_uid), CLASS_UID: value("UI", one.sop_class_uid)}
        values = {**one.known.values, **uids, **computed}
        return values if all_match(self.search.keys, values) else None

    def _told(self, values: Json, one: Held, levels: Iterable[str]) -> Json:
        """What is answered of a match."""
        computed = {AVAILABILITY, RETRIEVE_URL, SYNTAXES, MODALITIES, CLASSES}
        computed |= {SERIES_IN_STUDY, INSTANCES_IN_STUDY, INSTANCES_IN_SERIES}
        names = {*levels, *computed, *(key.path[0] for key in self.search.keys), *self.search.more}
        if self.search.everything:
            names |= set(levels) | ({*ALL} if INSTANCE_UID in levels else set())
        told = {name: values[name] for name in names if name in values}
        unknown = [name for name in self.search.more if name not in values]
        return dict(sorted((told | _read(one, unknown)).items()))

    def _of_study(self, objects: Sequence[Held]) -> Json:
        several = [some[0] for some in _by_series(objects)]
        modalities = sorted({text for one in several if (text := one.known.text(MODALITY))})
        return {
            AVAILABILITY: value("CS", "ONLINE"),
            MODALITIES: value("CS", *modalities),
            CLASSES: value("UI", *sorted({one.sop_class_uid for one in objects})),
            RETRIEVE_URL: value("UR", self.place.study(objects[0].study_uid)),
            SERIES_IN_STUDY: value("IS", len(several)),
            INSTANCES_IN_STUDY: value("IS", len(objects)),
        }

    def _of_series(self, objects: Sequence[Held]) -> Json:
        return {
            AVAILABILITY: value("CS", "ONLINE"),
            RETRIEVE_URL: value("UR", self.place.series(objects[0].study_uid, objects[0].series_uid)),
            INSTANCES_IN_SERIES: value("IS", len(objects)),
        }

    def _of_instance(self, one: Held) -> Json:
        return {
            AVAILABILITY: value("CS", "ONLINE"),
            RETRIEVE_URL: value("UR", self.place.instance(one)),
            SYNTAXES: value("UI", one.known.transfer_syntax_uid),
        }


def _by_series(objects: Iterable[Held]) -> list[list[Held]]:
    """In the order in which they began."""
    by_uid: dict[str, list[Held]] = {}
    for one in objects:
        by_uid.setdefault(one.series_uid, []).append(one)
    return list(by_uid.values())


def _read(one: Held, names: Sequence[str]) -> Json:
    """Other attributes, from the file."""
    if not names:
        return {}
    try:
        with one.path.open("rb") as stream:
            header = read_header(stream, find_encoding(stream))
            elements = {name: element_json(header, Tag(int(name, 16))) for name in names}
    except (*MALFORMED, OSError):
        return {}
    return {name: element for name, element in elements.items() if element is not None}


def answered(request: Request, finding: Finding, found: Iterator[Json]) -> Response:
    """What was found, from the offset to the limit."""
    kind = accepted(request, [Offer(DICOM_JSON), Offer(JSON)])[0].offer.kind
    search = finding.search
    page = list(islice(found, search.offset, search.offset + search.limit))
    warnings = [_FUZZY] if search.fuzzy else []
    if search.limit == len(page) and next(found, None) is not None:
        warnings.append(_MORE)
    if finding.stopped:
        warnings.append(_STOPPED.format(len(finding.stopped)))
    headers = {"Warning": ", ".join(warnings)} if warnings else {}
    return Response(json.dumps(page), media_type=kind, headers=headers)


def finding(request: Request, search: Annotated[Search, Depends(searched)]) -> Finding:
    return Finding(site_of(request), Place.of(request), search)


Asked = Annotated[Finding, Depends(finding)]


@router.get("/studies")
def studies(request: Request, asked: Asked) -> Response:
    """Studies that match, with how much there is of each."""
    return answered(request, asked, asked.studies())


@router.get("/series")
def all_series(request: Request, asked: Asked) -> Response:
    """Series of all studies that match."""
    return answered(request, asked, asked.series(None))


@router.get("/instances")
def all_instances(request: Request, asked: Asked) -> Response:
    """Instances of all studies that match."""
    return answered(request, asked, asked.instances(None, None))


@router.get("/studies/{study_uid}/series")
def series_of_study(request: Request, asked: Asked, study_uid: str) -> Response:
    """Series of a study that match."""
    return answered(request, asked, asked.series(study_uid))


@router.get("/studies/{study_uid}/instances")
def instances_of_study(request: Request, asked: Asked, study_uid: str) -> Response:
    """Instances of a study that match."""
    return answered(request, asked, asked.instances(study_uid, None))


@router.get("/studies/{study_uid}/series/{series_uid}/instances")
def instances_of_series(request: Request, asked: Asked, study_uid: str, series_uid: str) -> Response:
    """Instances of a series that match."""
    return answered(request, asked, asked.instances(study_uid, series_uid))
