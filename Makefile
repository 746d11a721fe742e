# Everything a user types first. The work is in scripts/, one readable file per command.

.PHONY: help demo demo-stop test sdk-matrix bench schemathesis build

help:
	@echo 'make demo          set everything up, run the two demo programs, print what they saw, take it all away'
	@echo 'make demo KEEP=1   the same, and leave the server running for you'
	@echo 'make demo-stop     stop a server that KEEP=1 left running'
	@echo 'make test          run every test there is, then check that nothing was left behind'
	@echo 'make sdk-matrix    run every release of the E2B SDKs, old and new, and write docs/sdk-matrix.md'
	@echo 'make bench         measure create, pause, resume and memory, beside gVisor and plain QEMU'
	@echo 'make schemathesis  ask everything the OpenAPI document allows, and much it does not, 10,000 times'
	@echo 'make build         the release binary only: target/release/torpor'

demo:
	@KEEP='$(KEEP)' scripts/demo

demo-stop:
	@scripts/demo stop

test:
	@scripts/test

sdk-matrix:
	@VERSIONS='$(VERSIONS)' scripts/sdk-matrix

bench:
	@scripts/bench

schemathesis:
	@scripts/schemathesis

build:
	cargo build --release --package torpor --locked
