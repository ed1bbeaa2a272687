"""Case 8: unknown and private SOP classes, DICOMDIR, a dose report, no Patient ID, other alphabets, UIDs like paths.

The study survives, and nothing is written outside the spool.
"""

from __future__ import annotations

import pytest
from pydicom import Dataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    XRayRadiationDoseSRStorage,
)

from tests.gateway.faults.faulty import Faulty
from tests.gateway.phantoms import new_phantom
from tests.gateway.receiving import CT, RawPeer, associate_request, data_set_of, encode, store_message

UNKNOWN, PRIVATE = "1.2.840.10008.5.1.4.1.1.999.1", "1.3.12.2.1107.5.9.1"


def of_class(like: Dataset, sop_class: str) -> Dataset:
    """An instance of the same study, in a series of its own."""
    (one,) = new_phantom(slices=1, StudyInstanceUID=like.StudyInstanceUID, SOPClassUID=sop_class, Modality="OT")
    return one


def path_like(like: Dataset, uid: str) -> tuple[Dataset, bytes]:
    """An instance whose Series Instance UID leads somewhere else."""
    (one,) = new_phantom(slices=1, StudyInstanceUID=like.StudyInstanceUID, Modality="OT")
    stated = str(one.SeriesInstanceUID)
    one.SeriesInstanceUID = "0" * len(stated)  # the length, the bytes follow
    data_set = encode(one).replace(("0" * len(stated)).encode(), uid.encode().ljust(len(stated), b"\0"))
    return one, data_set


def test_case_08_a_study_with_oddities_survives(gateway: Faulty) -> None:
    series = new_phantom(PatientID="", PatientName="Müller^Jörg=山田^太郎", SpecificCharacterSet="ISO_IR 192")
    odd = [of_class(series[0], uid) for uid in (UNKNOWN, PRIVATE, XRayRadiationDoseSRStorage)]
    contexts = [
        (1, CT, str(ExplicitVRLittleEndian)),
        (3, UNKNOWN, str(ExplicitVRLittleEndian)),
        (5, PRIVATE, str(ExplicitVRLittleEndian)),
        (7, str(XRayRadiationDoseSRStorage), str(ExplicitVRLittleEndian)),
        (9, str(MediaStorageDirectoryStorage), str(ImplicitVRLittleEndian)),
    ]
    with RawPeer(gateway.port, associate_request(contexts=contexts)) as peer:
        for one in series[:4]:
            peer.send(store_message(CT, str(one.SOPInstanceUID), encode(one)))
            assert peer.read_status() == 0
        for number, one in enumerate(odd):
            message = store_message(
                str(one.SOPClassUID), str(one.SOPInstanceUID), encode(one), context_id=3 + 2 * number
            )
            peer.send(message)
            assert peer.read_status() == 0
        for one in series[4:]:
            peer.send(store_message(CT, str(one.SOPInstanceUID), encode(one)))
            assert peer.read_status() == 0
        peer.release()
    gateway.complete(series)
    assert gateway.ended(series).state == "done"
    stored = gateway.rows(f"SELECT * FROM instance WHERE study_uid = '{series[0].StudyInstanceUID}'")
    assert {row.sop_instance_uid: data_set_of(gateway.spool / row.path) for row in stored} == {
        one.SOPInstanceUID: encode(one) for one in [*series, *odd]
    }


@pytest.mark.parametrize("uid", ["../../../../tmp/x", "/etc/passwd", "..", "a\\b", "1.2/../../3", "1..2"])
def test_case_08_uids_like_paths_stay_inside(gateway: Faulty, uid: str) -> None:
    before = {path for path in gateway.folder.iterdir() if path.name != "faults"}
    instance, data_set = path_like(new_phantom(slices=1)[0], uid)
    with RawPeer(gateway.port, associate_request()) as peer:
        peer.send(store_message(CT, str(instance.SOPInstanceUID), data_set))
        assert peer.read_status() in (0, 0xC000)
        peer.release()
    rows = gateway.rows(f"SELECT path FROM instance WHERE sop_instance_uid = '{instance.SOPInstanceUID}'")
    for row in rows:
        assert (gateway.spool / row.path).resolve().is_relative_to(gateway.spool / "studies")
        assert (gateway.spool / row.path).parent.parent.parent == gateway.spool / "studies"
    assert {path for path in gateway.folder.iterdir() if path.name != "faults"} == before


def test_case_08_a_dicomdir_is_no_instance_to_store(gateway: Faulty) -> None:
    """Nothing negotiates its class for storage (PS3.4 B.5), so it is refused by its context and the rest goes on."""
    contexts = [
        (1, CT, str(ExplicitVRLittleEndian)),
        (3, str(MediaStorageDirectoryStorage), str(ExplicitVRLittleEndian)),
    ]
    (one,) = new_phantom(slices=1, Modality="OT")
    directory = of_class(one, str(MediaStorageDirectoryStorage))
    with RawPeer(gateway.port, associate_request(contexts=contexts)) as peer:
        peer.send(store_message(CT, str(one.SOPInstanceUID), encode(one)))
        assert peer.read_status() == 0
        peer.send(
            store_message(str(directory.SOPClassUID), str(directory.SOPInstanceUID), encode(directory), context_id=3)
        )
        assert peer.read_status() in (0x0122, None)
    assert not gateway.instances([directory])
    assert gateway.instances([one])
