"""What other programs need to run a deployment: systemd units, compose files, a proxy's rules.

Ready to use and to edit; `fedkd deploy` itself reads none of them.
"""

from __future__ import annotations

from pathlib import Path
from string import Template

from scenarios.deploy.folder import ServerSettings

UNIT = Template("""\
# /etc/systemd/system/fedkd-$what.service; then: systemctl enable --now fedkd-$what
[Unit]
Description=fedkd $what
After=network-online.target
Wants=network-online.target

[Service]
User=fedkd
EnvironmentFile=-/etc/fedkd/$what/fedkd.env
ExecStart=/opt/fedkd/bin/fedkd deploy $command /etc/fedkd/$what
Restart=always
RestartSec=5
KillSignal=SIGINT
TimeoutStopSec=30
NoNewPrivileges=true
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=true
ReadWritePaths=/etc/fedkd/$what/state

[Install]
WantedBy=multi-user.target
""")

COMPOSE_CLIENT = Template("""\
# An image with fedkd in it: FROM python:3.11, then pip install fedkd.
services:
  $what:
    image: fedkd
    command: fedkd deploy client /client
    env_file: fedkd.env
    volumes:
      - .:/client
      # - /where/the/data/is:/data:ro
    restart: always
""")

COMPOSE_SERVER = Template("""\
# An image with fedkd in it: FROM python:3.11, then pip install fedkd.
services:
  server:
    image: fedkd
    command: fedkd deploy server /server
    env_file: fedkd.env
    volumes:
      - .:/server
    network_mode: host  # the SuperLink listens on the loopback address only
    restart: always
  proxy:
    image: nginx:stable
    network_mode: host
    volumes:
      - ./nginx.conf:/etc/nginx/nginx.conf:ro
      - ./server.pem:/etc/fedkd/server/server.pem:ro
      - ./server.key:/etc/fedkd/server/server.key:ro
      - ./ca.crt:/etc/fedkd/server/ca.crt:ro
    restart: always
""")

NGINX = Template("""\
# Only clients' paths leave this host. The SuperLink serves its Control API, with which anybody
# could submit code, at the same port and without accounts: it must not be reachable from outside.
worker_processes auto;
events {}
http {
  access_log off;
  client_max_body_size 64m;
  # Of each address; an honest client stays far below both. Raise them for many behind one address.
  limit_req_zone $$binary_remote_addr zone=calls:1m rate=200r/s;
  limit_conn_zone $$binary_remote_addr zone=lines:1m;
  server {
    listen $port ssl;
    server_name $hosts;
    ssl_certificate /etc/fedkd/server/server.pem;
    ssl_certificate_key /etc/fedkd/server/server.key;
    ssl_protocols TLSv1.2 TLSv1.3;
    limit_req zone=calls burst=1000 nodelay;
    limit_conn lines 64;
    location / { return 404; }
    location /v1/fleet/ { proxy_pass https://127.0.0.1:$link_port; }
    location = /health { proxy_pass https://127.0.0.1:$link_port; }
    proxy_ssl_trusted_certificate /etc/fedkd/server/ca.crt;
    proxy_ssl_verify on;
    proxy_ssl_name localhost;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_request_buffering off;
    proxy_read_timeout 60s;
  }
}
""")

ENV = """\
# Read by the service. One thread a process is right for small models; see `fedkd bench`.
OMP_NUM_THREADS=1
"""


def write_server(folder: Path, settings: ServerSettings) -> None:
    """The server's files."""
    unit = UNIT.substitute(what="server", command="server")
    (folder / "fedkd-server.service").write_text(unit)
    (folder / "docker-compose.yml").write_text(COMPOSE_SERVER.substitute())
    (folder / "nginx.conf").write_text(nginx(settings))
    (folder / "fedkd.env").write_text(ENV)


def write_client(folder: Path, settings: ServerSettings, name: str) -> None:
    """A client's files."""
    unit = UNIT.substitute(what=name, command="client")
    (folder / f"fedkd-{name}.service").write_text(unit)
    (folder / "docker-compose.yml").write_text(COMPOSE_CLIENT.substitute(what=name))
    (folder / "fedkd.env").write_text(ENV)


def nginx(settings: ServerSettings) -> str:
    """The proxy's configuration."""
    return NGINX.substitute(
        port=settings.port, link_port=settings.link_port, hosts=" ".join(settings.hosts)
    )
