# medseg serve, and every other medseg command: docker build -t medseg . && docker run --rm medseg --help
#
# TORCH_INDEX: where torch comes from. The default has CPU wheels; https://pypi.org/simple has those with CUDA.

FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
RUN python -m venv /opt/medseg
ENV PATH=/opt/medseg/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt ./
# torch by itself: what follows finds it installed, and this layer outlives changes of everything else
RUN pip install --index-url "$TORCH_INDEX" -c constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY bundles bundles
COPY medseg medseg
COPY gateway gateway
RUN pip install -c constraints.txt .

FROM python:3.11-slim-bookworm
# tini, as process 1, passes signals on and reaps what a killed worker leaves behind
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends tini \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --home-dir /var/lib/medseg --create-home medseg
COPY --from=build /opt/medseg /opt/medseg
COPY deploy/medseg.toml /etc/medseg/medseg.toml
ENV PATH=/opt/medseg/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
WORKDIR /etc/medseg
VOLUME /var/lib/medseg
EXPOSE 11112
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8090/readyz', timeout=5)"]
ENTRYPOINT ["tini", "--", "medseg"]
CMD ["serve"]
