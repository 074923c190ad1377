#!/bin/sh
# Plays a `terrane local --init-only --json` that prints no JSON.
echo hello
