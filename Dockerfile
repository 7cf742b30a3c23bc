# Targets: app, mlflow, training. The libraries of training are a layer on those of mlflow.
ARG PYTHON=docker.io/library/python:3.13.15-slim-bookworm@sha256:ed86c82274b3c69b52fb5820f358f0bd7df0b603332063cb5c6e32bd220c3e6e
FROM ${PYTHON} AS base
RUN python -m venv --without-pip /venv
ENV PATH=/venv/bin:$PATH PYTHONPATH=/platform PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    PIP_REQUIRE_HASHES=1 PIP_ONLY_BINARY=:all: PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PYTHON=/venv/bin/python PIP_QUIET=1
WORKDIR /platform

FROM base AS app
COPY --chmod=755 requirements/app.txt requirements/
# A private package index and certificate authority come as secrets: they are in no layer.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem,target=/run/ca.pem \
    if [ -s /run/ca.pem ]; then export PIP_CERT=/run/ca.pem; fi; pip install -r requirements/app.txt
COPY --chmod=755 mlops mlops
COPY --chmod=755 app app
RUN python -m compileall -q .
USER 65532:65532
EXPOSE 8080
CMD ["python", "-m", "app"]

FROM base AS libraries
COPY --chmod=755 requirements/mlflow.txt requirements/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem,target=/run/ca.pem \
    if [ -s /run/ca.pem ]; then export PIP_CERT=/run/ca.pem; fi; pip install -r requirements/mlflow.txt

FROM libraries AS mlflow
COPY --chmod=755 mlops mlops
COPY --chmod=755 infra infra
RUN python -m compileall -q .
USER 65532:65532
EXPOSE 5000
CMD ["mlflow", "server", "--host", "0.0.0.0"]

FROM libraries AS training
COPY --chmod=755 requirements/training.txt requirements/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem,target=/run/ca.pem \
    if [ -s /run/ca.pem ]; then export PIP_CERT=/run/ca.pem; fi; pip install -r requirements/training.txt
COPY --chmod=755 mlops mlops
COPY --chmod=755 cli cli
COPY --chmod=755 training training
COPY --chmod=755 monitoring monitoring
RUN python -m compileall -q .
ARG COMMIT=unknown
ENV MLOPS_COMMIT=$COMMIT
USER 65532:65532
EXPOSE 9100
CMD ["python", "-m", "cli", "train"]
