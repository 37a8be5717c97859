# syntax=docker/dockerfile:1
# An agent, for a CPU or for NVIDIA GPUs. From the checkout's root:
#   docker build -f deploy/images/agent.Dockerfile -t nearmesh-agent:cpu .
#   docker build -f deploy/images/agent.Dockerfile -t nearmesh-agent:gpu --build-arg KIND=gpu \
#       --build-arg BASE=nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04 .
# With weights inside, made as weights.Dockerfile says:
#   docker build ... --build-context weights=docker-image://nearmesh-weights .

# Debian's or Ubuntu's; where it has no Python, install.sh brings it.
ARG BASE=python:3.11-slim-bookworm

FROM scratch AS weights

FROM ${BASE} AS built
ARG KIND=cpu
WORKDIR /src
COPY deploy/images/install.sh deploy/images/
COPY requirements.txt pyproject.toml README.md ./
COPY nearmesh nearmesh
COPY agent agent
RUN --mount=type=cache,target=/root/.cache/pip deploy/images/install.sh /opt/nearmesh "${KIND}"

FROM ${BASE} AS agent
COPY deploy/images/install.sh /usr/local/sbin/nearmesh-install
RUN nearmesh-install --system
# Layers by themselves: a new agent leaves the weights where they are in every cache, and new weights the agent.
COPY --link --from=built /opt/nearmesh /opt/nearmesh
COPY --link --from=weights . /opt/nearmesh-weights
COPY --link deploy/images/node.toml /etc/nearmesh/node.toml
ENV PATH=/opt/nearmesh/bin:${PATH}
# nobody, by number: an orchestrator can then prove that it is not root.
USER 65534:65534
VOLUME /var/lib/nearmesh
EXPOSE 8001 8003
STOPSIGNAL SIGTERM
ENTRYPOINT ["nearmesh-agent", "--config", "/etc/nearmesh/node.toml"]
