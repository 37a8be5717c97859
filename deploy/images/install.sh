#!/bin/sh
# Installs an agent from a checkout into a folder; what agent.Dockerfile runs, and works on a plain machine as well.
#   install.sh FOLDER cpu|gpu     the environment, from the checkout that is the working directory
#   install.sh --system           what the running image needs of its distribution, as root
set -eu

# The one that everything is tested with first.
pythons="python3.11 python3.12 python3.13 python3"

find_python() {
    for name in $pythons; do
        "$name" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v "$name" && return
    done
    echo "Python 3.11 or later is needed" >&2
    return 1
}

install_python() {
    find_python >/dev/null 2>&1 && return
    apt-get update
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-venv ca-certificates
    rm -rf /var/lib/apt/lists/*
}

if [ "${1:-}" = "--system" ]; then
    install_python
    # The agent's own folder, which a volume takes over; nobody's.
    install -d -o 65534 -g 65534 -m 700 /var/lib/nearmesh
    exit
fi

folder=${1:?the folder to install into}
kind=${2:?cpu or gpu}
case $kind in cpu | gpu) ;; *) echo "kind is '$kind'; expected cpu or gpu" >&2 && exit 2 ;; esac
[ "$(id -u)" != 0 ] || install_python
python=$(find_python)
"$python" -m venv "$folder"
# The development environment's pins, so that an image is what was tested.
"$folder/bin/pip" install --quiet --disable-pip-version-check --constraint requirements.txt . "./agent[$kind,images,texts]"
"$folder/bin/nearmesh-agent" --help >/dev/null
