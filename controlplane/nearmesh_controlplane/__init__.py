"""The control plane of a mesh."""

import os

# gRPC reads it as it is imported. Its handlers around a fork crash the child before it becomes another program, one in
# twenty while calls are under way (grpcio 1.85); what is begun here needs none of them.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
