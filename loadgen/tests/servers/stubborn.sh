#!/bin/sh
# Plays a node that ignores SIGTERM (as does what it executes).
trap '' TERM
echo up
exec sleep 600
