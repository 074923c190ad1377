#!/bin/sh
# Plays `terrane local --init-only --json` for two nodes, out of order and with a relative path.
cat <<'JSON'
{"nodes":[
  {"id":2,"config":"d/node-2.toml","log":"d/node-2.log","data":"d/node-2.terrane","address":"127.0.0.1:7500"},
  {"id":1,"config":"/d/node-1.toml","log":"/d/node-1.log","data":"/d/node-1.terrane","address":"127.0.0.1:7400"}
]}
JSON
