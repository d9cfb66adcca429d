module callback-guard.io/tests/cluster/app

go 1.24
