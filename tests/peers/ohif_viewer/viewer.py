"""The real OHIF viewer beside a DICOMweb server, on loopback.

Its npm package @ohif/app holds a built viewer; one origin serves it and passes /dicom-web on, so no CORS is needed.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import subprocess
import tarfile
import tempfile
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

VERSION = "3.13.2"  # named: npm would choose an older one, since this one asks for a newer node than it needs
DIST = "package/dist/"
LEFT_OUT = "ort/"  # 136 MB of runtime for interactive tools

# No question before a SEG is loaded; no tour for newcomers, which takes all clicks.
CONFIG = """
localStorage.setItem('shownTours', '["basicViewerTour"]');
const origin = window.location.origin;
window.config = {
  name: 'medseg', routerBasename: null, extensions: [], modes: [], customizationService: {},
  showStudyList: true, maxNumberOfWebWorkers: 2, showWarningMessageForCrossOrigin: false,
  showCPUFallbackMessage: false, showLoadingIndicator: true, strictZSpacingForVolumeViewport: true,
  investigationalUseDialog: { option: 'never' }, disableConfirmationPrompts: true,
  defaultDataSourceName: 'pacs',
  dataSources: [{
    namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
    sourceName: 'pacs',
    configuration: {
      friendlyName: 'PACS', name: 'pacs', wadoUriRoot: origin + '/wado', qidoRoot: origin + '/dicom-web',
      wadoRoot: origin + '/dicom-web', qidoSupportsIncludeField: false, supportsReject: false,
      supportsFuzzyMatching: false, supportsWildcard: true, imageRendering: 'wadors', thumbnailRendering: 'wadors',
      enableStudyLazyLoad: true, dicomUploadEnabled: false, omitQuotationForMultipartRequest: true,
      bulkDataURI: { enabled: true },
    },
  }],
};
"""
TYPES = {
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".css": "text/css",
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
}
PASSED_ON = ("accept", "content-type", "host")  # the host stands in the addresses of bulk data
NOT_PASSED_BACK = ("connection", "transfer-encoding", "content-length", "keep-alive")


def fetch(cache: Path) -> Path:
    """The viewer's built files: from the cache, or by `npm pack`."""
    folder = cache / f"ohif-{VERSION}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=cache))
        subprocess.run(["npm", "pack", "--silent", f"@ohif/app@{VERSION}"], cwd=part, check=True, capture_output=True)
        (package,) = part.glob("*.tgz")
        with tarfile.open(package) as archive:
            for member in archive:
                name = member.name.removeprefix(DIST)
                if member.isfile() and name != member.name and not name.startswith(LEFT_OUT) and ".map" not in name:
                    member.name = name
                    archive.extract(member, part, filter="data")
        package.unlink()
        part.rename(folder)
    return folder


@contextlib.contextmanager
def viewer(dicomweb: str, cache: Path) -> Iterator[str]:
    """Serve the viewer; its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(fetch(cache), dicomweb))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()


def _handler(dist: Path, dicomweb: str) -> type[http.server.BaseHTTPRequestHandler]:
    place = urllib.parse.urlsplit(dicomweb).netloc

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:  # type: ignore[override]
            pass

        def do_GET(self) -> None:
            path = urllib.parse.urlsplit(self.path).path
            if path.startswith("/dicom-web"):
                self._pass_on()
            elif path == "/app-config.js":
                self._answer(CONFIG.encode(), ".js")
            else:
                file = (dist / path.lstrip("/")).resolve()
                if not (file.is_file() and file.is_relative_to(dist.resolve())):
                    file = dist / "index.html"  # a route of the application
                self._answer(file.read_bytes(), file.suffix)

        def _answer(self, body: bytes, suffix: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", TYPES.get(suffix, "application/octet-stream"))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _pass_on(self) -> None:
            headers = {name: value for name, value in self.headers.items() if name.lower() in PASSED_ON}
            with contextlib.closing(http.client.HTTPConnection(place, timeout=120)) as connection:
                connection.request("GET", self.path, headers=headers)
                answer = connection.getresponse()
                body = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in NOT_PASSED_BACK:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
