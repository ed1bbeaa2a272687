"""A throw-away Orthanc PACS with DICOMweb on loopback, from Debian's packages `orthanc` and `orthanc-dicomweb`.

started = orthanc.start(folder, aet="PACS", peers={"gw": ("MEDSEG", 11112)}, route="gw")
...
orthanc.stop(folder)
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.peers import missing
from tests.ports import free_port

# Orthanc 1.10 and DCMTK's servers listen on every address. This shim, built if a C compiler is there, makes any
# wildcard bind() a loopback one.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netinet/in.h>
#include <sys/socket.h>
int bind(int fd, const struct sockaddr *a, socklen_t n) {
  static int (*real)(int, const struct sockaddr *, socklen_t);
  if (!real) real = (int (*)(int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT, "bind");
  if (a && a->sa_family == AF_INET && n >= sizeof(struct sockaddr_in)) {
    struct sockaddr_in b = *(const struct sockaddr_in *)a;
    if (b.sin_addr.s_addr == htonl(INADDR_ANY)) b.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return real(fd, (const struct sockaddr *)&b, sizeof b);
  }
  return real(fd, a, n);
}
"""

# In a stable-series handler Lua's SendToModality() fails (it takes instances alone): a series goes by REST,
# asynchronously, since Lua is locked meanwhile.
ROUTE = """
local function wanted(tags, origin)
  local m = tags['Modality']
  return m ~= 'SEG' and m ~= 'SR' and (origin == nil or origin['RemoteAet'] ~= '%(aet)s')
end
function OnStoredInstance(id, tags, metadata, origin)
  if '%(on)s' == 'instance' and wanted(tags, origin) then SendToModality(id, '%(alias)s') end
end
function OnStableSeries(id, tags, metadata)
  if '%(on)s' == 'stable' and wanted(tags, nil) then
    RestApiPost('/modalities/%(alias)s/store',
                DumpJson({Resources = {id}, Synchronous = false}))
  end
end
"""


def start(
    folder: Path,
    *,
    aet: str = "PACS",
    dicom_port: int = 0,
    http_port: int = 0,
    peers: Mapping[str, tuple[str, int]] = {},
    route: str | None = None,
    route_on: str = "stable",
    stable_age_s: int = 2,
    sync: bool = False,
    password: str | None = None,
    tls: tuple[Path, Path, Path] | None = None,
    timeout_s: float = 30,
) -> dict[str, Any]:
    """Start Orthanc in a folder of its own and wait until it answers: pid, ports and URLs.

    peers: alias to (AE title, port). route: the alias that all but SEG and SR is sent to, per stable series or per
    instance. sync: fsync what is stored. password: "user:word". tls: key, certificate, trusted certificates.
    """
    work = folder.resolve()  # Orthanc takes a relative path as relative to its configuration file
    work.mkdir(parents=True, exist_ok=True)
    dicom_port, http_port = dicom_port or free_port(), http_port or free_port()
    if route:
        (work / "route.lua").write_text(ROUTE % {"alias": route, "aet": peers[route][0], "on": route_on})
    configuration = _configuration(work, aet, dicom_port, http_port, peers, stable_age_s, sync, password, tls, route)
    return launch(work, configuration, password=password, timeout_s=timeout_s)


def launch(
    folder: Path, configuration: Mapping[str, Any], *, password: str | None = None, timeout_s: float = 30
) -> dict[str, Any]:
    """Start Orthanc with a configuration of one's own; as `start`. Its paths are absolute, its ports free."""
    program = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
    if not Path(program).exists():
        missing("Orthanc")
    work = folder.resolve()
    work.mkdir(parents=True, exist_ok=True)
    (work / "orthanc.json").write_text(json.dumps(configuration))
    # Debian's DCMTK leaves Nagle on: about 45 ms lost for each C-STORE until this is set, in the client too.
    environment = os.environ | {"TCP_NODELAY": "1"}
    if shim := _loopback_shim(work):
        environment["LD_PRELOAD"] = shim
    with (work / "orthanc.log").open("ab") as log:
        process = subprocess.Popen(
            [program, str(work / "orthanc.json")],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
    (work / "orthanc.pid").write_text(str(process.pid))
    url = f"http://127.0.0.1:{configuration['HttpPort']}"
    version = _wait(url, password, process, work, timeout_s)
    return {
        "pid": process.pid,
        "aet": configuration["DicomAet"],
        "dicom_port": configuration["DicomPort"],
        "http_port": configuration["HttpPort"],
        "rest": url,
        "dicomweb": url + "/dicom-web",
        "version": version,
    }


def stop(folder: Path, timeout_s: float = 15) -> None:
    """End the Orthanc that `start` left running in this folder."""
    pid = int((folder / "orthanc.pid").read_text())
    try:
        if b"Orthanc" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and not _gone(pid):
            time.sleep(0.1)
        if not _gone(pid):
            os.kill(pid, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        pass


def _configuration(
    work: Path,
    aet: str,
    dicom_port: int,
    http_port: int,
    peers: Mapping[str, tuple[str, int]],
    stable_age_s: int,
    sync: bool,
    password: str | None,
    tls: tuple[Path, Path, Path] | None,
    route: str | None,
) -> dict[str, Any]:
    everything = ("AllowEcho", "AllowStore", "AllowFind", "AllowGet", "AllowMove", "AllowStorageCommitment")
    configuration: dict[str, Any] = {
        "Name": aet,
        "StorageDirectory": str(work / "db"),
        "IndexDirectory": str(work / "db"),
        "Plugins": ["/usr/share/orthanc/plugins/libOrthancDicomWeb.so"],
        "DicomAet": aet,
        "DicomPort": dicom_port,
        "DicomCheckCalledAet": True,
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "HttpsVerifyPeers": False,
        "AuthenticationEnabled": bool(password),
        "DicomModalities": {
            alias: {"AET": title, "Host": "127.0.0.1", "Port": port, "AllowTranscoding": True, "UseDicomTls": bool(tls)}
            | dict.fromkeys(everything, True)
            for alias, (title, port) in peers.items()
        },
        "DicomScpTimeout": 30,
        "DicomScuTimeout": 30,
        "StableAge": stable_age_s,
        "ConcurrentJobs": 2,
        "OverwriteInstances": True,
        "SaveJobs": False,
        "SyncStorageArea": sync,
        "DicomWeb": {
            "Enable": True,
            "Root": "/dicom-web/",
            "EnableWado": True,
            "WadoRoot": "/wado",
            "Ssl": False,
            "StudiesMetadata": "Full",
            "SeriesMetadata": "Full",
        },
    }
    configuration |= {f"DicomAlways{what}": True for what in ("AllowEcho", "AllowStore", "AllowFind", "AllowGet")}
    if password:
        user, _, word = password.partition(":")
        configuration["RegisteredUsers"] = {user: word}
    if tls:
        key, certificate, trusted = (str(path.resolve()) for path in tls)
        configuration |= {
            "DicomTlsEnabled": True,
            "DicomTlsPrivateKey": key,
            "DicomTlsCertificate": certificate,
            "DicomTlsTrustedCertificates": trusted,
            "DicomTlsRemoteCertificateRequired": True,
        }
    if route:
        configuration["LuaScripts"] = [str(work / "route.lua")]
    return configuration


def _loopback_shim(work: Path) -> str | None:
    """Path of a preload library that keeps servers on loopback, or None."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        return None
    library = work / "loopback.so"
    if not library.exists():
        source = work / "loopback.c"
        source.write_text(SHIM)
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return str(library)


def _wait(url: str, password: str | None, process: subprocess.Popen[bytes], work: Path, timeout_s: float) -> str:
    request = urllib.request.Request(url + "/system")
    if password:
        request.add_header("Authorization", "Basic " + base64.b64encode(password.encode()).decode())
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(request, timeout=2) as answer:
                return str(json.load(answer)["Version"])
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                if process.poll() is None:
                    process.kill()
                raise RuntimeError("Orthanc did not start:\n" + (work / "orthanc.log").read_text()[-3000:]) from None
            time.sleep(0.1)


def _gone(pid: int) -> bool:
    try:
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            return True
    except ChildProcessError:
        pass
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True
