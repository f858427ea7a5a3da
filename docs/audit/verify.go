// Checks a Paidan checkpoint and what it vouches for with code that Paidan's authors did not write:
// golang.org/x/mod/sumdb/note and tlog, the packages behind Go's own checksum database.
// 用他人的实现核对派单的检查点：golang.org/x/mod/sumdb 的 note 与 tlog，即 Go 校验和数据库所用者。
//
//	GO111MODULE=off GOPATH=/usr/share/gocode go build -o verify verify.go
//	./verify VKEY leaf.tlog-proof leaf.json                       the leaf is in the tree / 叶子在树中
//	./verify VKEY new.checkpoint old.checkpoint consistency.json  the new tree begins with the old / 新树以旧树开头
package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func check(err error) {
	if err != nil {
		fmt.Println("✗", err)
		os.Exit(1)
	}
}

func read(file string) string {
	data, err := os.ReadFile(file)
	check(err)
	return string(data)
}

func hashes(lines []string) []tlog.Hash {
	var found []tlog.Hash
	for _, line := range lines {
		data, err := base64.StdEncoding.DecodeString(line)
		check(err)
		var hash tlog.Hash
		copy(hash[:], data)
		found = append(found, hash)
	}
	return found
}

// open checks the log's signature under a checkpoint; its size and root.
func open(vkey, text string) (int64, tlog.Hash) {
	verifier, err := note.NewVerifier(vkey)
	check(err)
	signed, err := note.Open([]byte(text), note.VerifierList(verifier))
	check(err)
	lines := strings.Split(signed.Text, "\n")
	size, err := strconv.ParseInt(lines[1], 10, 64)
	check(err)
	fmt.Println("✓ 签名 / signed by", signed.Sigs[0].Name, "大小 / size", size)
	return size, hashes(lines[2:3])[0]
}

func main() {
	switch len(os.Args) {
	case 4:
		head, checkpoint, _ := strings.Cut(read(os.Args[2]), "\n\n")
		lines := strings.Split(head, "\n") // c2sp.org/tlog-proof@v1, index N, hashes
		index, err := strconv.ParseInt(strings.TrimPrefix(lines[1], "index "), 10, 64)
		check(err)
		size, root := open(os.Args[1], checkpoint)
		leaf := tlog.RecordHash([]byte(read(os.Args[3])))
		check(tlog.CheckRecord(hashes(lines[2:]), size, root, index, leaf))
		fmt.Println("✓ 包含 / included: leaf", index, "of", size)
	case 5:
		size, root := open(os.Args[1], read(os.Args[2]))
		oldSize, oldRoot := open(os.Args[1], read(os.Args[3]))
		var proof struct{ Hashes []string }
		check(json.Unmarshal([]byte(read(os.Args[4])), &proof))
		check(tlog.CheckTree(hashes(proof.Hashes), size, root, oldSize, oldRoot))
		fmt.Println("✓ 一致 / consistent:", oldSize, "→", size)
	default:
		fmt.Println("see the comment at the top / 用法见文件开头")
		os.Exit(2)
	}
}
