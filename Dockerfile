# maskperf as a container; docs/docker.md shows how it is built and started.
ARG BASE_IMAGE=python:3.13-slim-bookworm
FROM ${BASE_IMAGE}

LABEL org.opencontainers.image.title="maskperf" \
      org.opencontainers.image.licenses="Apache-2.0"

# Empty: the version in constraints.txt.
ARG TORCH_VERSION=
# What a container writes on the host belongs to this user.
ARG USER_ID=1000
ARG GROUP_ID=1000

ENV PATH=/opt/maskperf/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The defaults of the recipes, data/... and runs/..., lead from the working folder to the two volumes.
RUN groupadd --non-unique --gid "${GROUP_ID}" maskperf \
    && useradd --non-unique --no-log-init --create-home --uid "${USER_ID}" --gid "${GROUP_ID}" maskperf \
    && mkdir /data /runs /workspace \
    && ln -s /data /workspace/data \
    && ln -s /runs /workspace/runs \
    && chown "${USER_ID}:${GROUP_ID}" /data /runs /workspace \
    && python3 -m venv /opt/maskperf

# The dependencies are gigabytes: they are a layer of their own, which a change of the sources leaves as it is.
WORKDIR /opt/maskperf-source
COPY constraints.txt pyproject.toml ./
RUN if [ -n "${TORCH_VERSION}" ]; then sed -i "s/^torch==.*/torch==${TORCH_VERSION}/" constraints.txt; fi \
    && python3 -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*project['dependencies'], sep='\n')" >dependencies.txt \
    && pip install --no-cache-dir --no-input --disable-pip-version-check \
        --constraint constraints.txt --requirement dependencies.txt

# Installed in place: `maskperf package` copies the sources and scripts into a submission.
COPY README.md CONTRIBUTING.md LICENSE *.sh ./
COPY docs ./docs
COPY src ./src
RUN pip install --no-cache-dir --no-input --disable-pip-version-check --no-deps --editable . \
    && python3 -m compileall -q src \
    && maskperf --version

VOLUME ["/data", "/runs"]
WORKDIR /workspace
USER ${USER_ID}:${GROUP_ID}
ENTRYPOINT ["maskperf"]
CMD ["--help"]
