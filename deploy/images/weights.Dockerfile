# syntax=docker/dockerfile:1
# Weights alone, for agents to be built with (agent.Dockerfile) or to be mounted beside one:
#   nearmesh model export file-type text-detector --into weights/
#   docker build -f deploy/images/weights.Dockerfile -t nearmesh-weights weights/
# A layout names each file by its content: versions of a model that share files share them here too.
FROM scratch
COPY --link oci-layout index.json /
COPY --link blobs /blobs
