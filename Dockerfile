# One image for every process of ours; the command says which: `worker inventory`, `migrate`, …
FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY requirements.lock requirements-build.lock ./
RUN python -m venv /opt/everycent \
    && /opt/everycent/bin/pip install --require-hashes --only-binary :all: -r requirements.lock \
    && python -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes --only-binary :all: -r requirements-build.lock
COPY . .
RUN /opt/build/bin/hatchling build -t wheel -d /tmp/wheel \
    && /opt/everycent/bin/pip install --no-deps --no-index /tmp/wheel/everycent-*.whl \
    && /opt/everycent/bin/python -m compileall -q /opt/everycent/lib

FROM python:3.13-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/everycent --create-home everycent
COPY --from=build /opt/everycent /opt/everycent
ENV PATH=/opt/everycent/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER everycent
WORKDIR /var/lib/everycent
ENTRYPOINT ["everycent"]
CMD ["--help"]
