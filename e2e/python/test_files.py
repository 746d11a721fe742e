"""Files, through the synchronous SDK."""

import hashlib
import io
import os
from datetime import UTC, datetime, timedelta

import pytest
from e2b import FileType, InvalidArgumentException, NotFoundException, SandboxException
from e2b.sandbox.filesystem.filesystem import SyncWriteEntry


def test_text_comes_back_as_it_was_written(sandbox):
    written = sandbox.files.write("/home/user/letter.txt", "Příliš žluťoučký kůň 🐎\n")
    assert (written.path, written.name, written.type) == ("/home/user/letter.txt", "letter.txt", FileType.FILE)
    assert sandbox.files.read("/home/user/letter.txt") == "Příliš žluťoučký kůň 🐎\n"


def test_bytes_come_back_as_they_were_written(sandbox):
    data = bytes(range(256)) * 100
    sandbox.files.write("data.bin", data)
    assert bytes(sandbox.files.read("data.bin", format="bytes")) == data


def test_an_empty_file_is_a_file(sandbox):
    sandbox.files.write("empty", "")
    assert sandbox.files.read("empty") == ""
    assert sandbox.files.get_info("empty").size == 0


def test_a_stream_is_written_and_read_in_chunks(sandbox):
    data = os.urandom(8 * 1024 * 1024)
    sandbox.files.write("big.bin", io.BytesIO(data))
    with sandbox.files.read("big.bin", format="stream") as stream:
        digest = hashlib.sha256()
        chunks = 0
        for chunk in stream:
            digest.update(chunk)
            chunks += 1
    assert digest.digest() == hashlib.sha256(data).digest()
    assert chunks > 1


def test_what_a_command_reads_is_what_was_uploaded(sandbox):
    data = os.urandom(3 * 1024 * 1024 + 17)
    sandbox.files.write("/tmp/upload.bin", data)
    digest = sandbox.commands.run("sha256sum < /tmp/upload.bin").stdout.split()[0]
    assert digest == hashlib.sha256(data).hexdigest()


def test_compressed_transfers_keep_the_content(sandbox):
    text = "the same line over and over\n" * 20_000
    sandbox.files.write("story.txt", text, gzip=True)
    assert sandbox.files.read("story.txt", gzip=True) == text
    assert sandbox.files.get_info("story.txt").size == len(text)


def test_writing_replaces_the_whole_file(sandbox):
    sandbox.files.write("note", "a long first version")
    sandbox.files.write("note", "short")
    assert sandbox.files.read("note") == "short"


def test_several_files_are_written_in_one_call(sandbox):
    written = sandbox.files.write_files([SyncWriteEntry(path=f"many/{n}.txt", data=f"number {n}") for n in range(5)])
    assert [entry.path for entry in written] == [f"/home/user/many/{n}.txt" for n in range(5)]
    assert [sandbox.files.read(f"many/{n}.txt") for n in range(5)] == [f"number {n}" for n in range(5)]


def test_directories_on_the_way_are_made(sandbox):
    sandbox.files.write("/home/user/a/b/c/deep.txt", "deep")
    assert sandbox.files.read("a/b/c/deep.txt") == "deep"
    assert sandbox.commands.run("stat -c %U a a/b a/b/c").stdout == "user\n" * 3


def test_relative_paths_and_the_tilde_are_in_the_home_directory(sandbox):
    sandbox.files.write("here.txt", "x")
    assert sandbox.files.exists("/home/user/here.txt")
    assert sandbox.files.exists("~/here.txt")


def test_a_missing_file_is_not_found(sandbox):
    with pytest.raises(NotFoundException, match="missing.txt"):
        sandbox.files.read("/home/user/missing.txt")
    with pytest.raises(NotFoundException):
        sandbox.files.get_info("/home/user/missing.txt")


def test_a_directory_cannot_be_read_or_overwritten_as_a_file(sandbox):
    with pytest.raises(InvalidArgumentException):
        sandbox.files.read("/home/user")
    with pytest.raises(InvalidArgumentException):
        sandbox.files.write("/home/user", "x")


def test_a_file_belongs_to_the_user_who_writes_it_and_root_may_write_anywhere(sandbox):
    sandbox.files.write("mine.txt", "x")
    sandbox.files.write("/etc/theirs.conf", "x", user="root")
    mine, theirs = sandbox.files.get_info("mine.txt"), sandbox.files.get_info("/etc/theirs.conf")
    assert (mine.owner, mine.group) == ("user", "user")
    assert (theirs.owner, theirs.group) == ("root", "root")


def test_information_about_a_file_is_complete(sandbox):
    before = datetime.now(UTC) - timedelta(seconds=5)
    sandbox.files.write("facts.txt", "twelve bytes")
    info = sandbox.files.get_info("facts.txt")
    assert info.name == "facts.txt"
    assert info.path == "/home/user/facts.txt"
    assert info.type == FileType.FILE
    assert info.size == 12
    assert info.mode == 0o644
    assert info.permissions == "-rw-r--r--"
    assert info.symlink_target is None
    modified = info.modified_time if info.modified_time.tzinfo else info.modified_time.replace(tzinfo=UTC)
    assert before < modified < datetime.now(UTC) + timedelta(seconds=5)


def test_a_symlink_says_where_it_points(sandbox):
    sandbox.files.write("target.txt", "x")
    sandbox.commands.run("ln -s target.txt link.txt")
    info = sandbox.files.get_info("link.txt")
    assert info.symlink_target == "/home/user/target.txt"
    assert sandbox.files.read("link.txt") == "x"


def test_metadata_is_kept_with_the_file_and_replaced_as_a_whole(sandbox):
    sandbox.files.write("tagged", "x", metadata={"author": "ada", "Purpose": "test"})
    assert sandbox.files.get_info("tagged").metadata == {"author": "ada", "purpose": "test"}
    sandbox.files.rename("tagged", "renamed")
    assert sandbox.files.get_info("renamed").metadata == {"author": "ada", "purpose": "test"}
    sandbox.files.write("renamed", "y")
    assert not sandbox.files.get_info("renamed").metadata


def test_a_listing_shows_one_level_unless_asked_for_more(sandbox):
    sandbox.files.write("tree/one.txt", "1")
    sandbox.files.write("tree/sub/two.txt", "22")
    sandbox.files.write("tree/sub/deeper/three.txt", "333")
    shallow = {entry.path: entry for entry in sandbox.files.list("tree")}
    assert set(shallow) == {"/home/user/tree/one.txt", "/home/user/tree/sub"}
    assert shallow["/home/user/tree/sub"].type == FileType.DIR
    assert shallow["/home/user/tree/one.txt"].size == 1
    two = {entry.path for entry in sandbox.files.list("tree", depth=2)}
    assert two == set(shallow) | {"/home/user/tree/sub/two.txt", "/home/user/tree/sub/deeper"}
    three = {entry.path for entry in sandbox.files.list("tree", depth=3)}
    assert three == two | {"/home/user/tree/sub/deeper/three.txt"}


def test_listing_a_file_or_nothing_is_refused(sandbox):
    sandbox.files.write("plain", "x")
    with pytest.raises(SandboxException):
        sandbox.files.list("plain")
    with pytest.raises(NotFoundException):
        sandbox.files.list("/home/user/nowhere")


def test_a_directory_is_made_once(sandbox):
    assert sandbox.files.make_dir("/home/user/new/inner") is True
    assert sandbox.files.make_dir("/home/user/new/inner") is False
    info = sandbox.files.get_info("/home/user/new/inner")
    assert (info.type, info.owner, info.mode) == (FileType.DIR, "user", 0o755)


def test_a_file_in_the_way_of_a_directory_is_refused(sandbox):
    sandbox.files.write("occupied", "x")
    with pytest.raises(InvalidArgumentException):
        sandbox.files.make_dir("occupied")


def test_renaming_moves_a_file_with_its_content(sandbox):
    sandbox.files.write("old.txt", "content")
    moved = sandbox.files.rename("old.txt", "elsewhere/new.txt")
    assert moved.path == "/home/user/elsewhere/new.txt"
    assert not sandbox.files.exists("old.txt")
    assert sandbox.files.read("elsewhere/new.txt") == "content"
    with pytest.raises(NotFoundException):
        sandbox.files.rename("old.txt", "again.txt")


def test_removing_takes_whole_trees_and_is_repeatable(sandbox):
    sandbox.files.write("doomed/inner/file", "x")
    sandbox.files.remove("doomed")
    assert not sandbox.files.exists("doomed")
    sandbox.files.remove("doomed")


def test_files_of_proc_are_read_through(sandbox):
    assert "MemTotal" in sandbox.files.read("/proc/meminfo")
    assert sandbox.files.read("/proc/sys/kernel/random/boot_id").count("-") == 4


def test_file_operations_as_an_unknown_user_are_refused(sandbox):
    with pytest.raises(Exception, match="nobody-by-that-name"):
        sandbox.files.list("/", user="nobody-by-that-name")
