-- The tables as the first version wrote them (user_version 11), with a record of each kind.
PRAGMA foreign_keys = OFF;
BEGIN;
CREATE TABLE volumes (
    id TEXT PRIMARY KEY, origin TEXT NOT NULL, weak INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('unverified', 'blank', 'formatting', 'formatted', 'permitted', 'exempt')),
    since INTEGER NOT NULL, cause TEXT NOT NULL, content TEXT, ever_formatted INTEGER NOT NULL, mounted INTEGER NOT NULL,
    formatter TEXT, discrepancy TEXT, first_seen INTEGER NOT NULL, boot TEXT NOT NULL, audit INTEGER NOT NULL DEFAULT 0,
    strict INTEGER NOT NULL DEFAULT 0, armed TEXT, sum INTEGER NOT NULL DEFAULT 0, generation INTEGER NOT NULL DEFAULT 0,
    last_seen INTEGER NOT NULL DEFAULT 0, ends TEXT
) STRICT;
CREATE TABLE marks (
    volume TEXT NOT NULL REFERENCES volumes (id) ON DELETE CASCADE, offset INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('magic', 'uuid')), bytes BLOB NOT NULL CHECK (length(bytes) BETWEEN 1 AND 16),
    PRIMARY KEY (volume, offset)
) STRICT;
CREATE TABLE permits (volume TEXT PRIMARY KEY REFERENCES volumes (id) ON DELETE CASCADE, permit TEXT NOT NULL) STRICT;
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, volume TEXT NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL,
    refusal TEXT, count INTEGER NOT NULL DEFAULT 1, first INTEGER NOT NULL DEFAULT 0, by_operator INTEGER NOT NULL DEFAULT 0,
    repeats TEXT, pid INTEGER
) STRICT;
CREATE INDEX events_of_volume ON events (volume, id);
CREATE INDEX events_by_time ON events (at);
CREATE INDEX events_that_pass ON events (id) WHERE by_operator = 0;
CREATE INDEX events_that_repeat ON events (repeats, id) WHERE repeats IS NOT NULL;
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL, sum INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE copies (
    volume TEXT PRIMARY KEY REFERENCES volumes (id) ON DELETE CASCADE, generation INTEGER NOT NULL, at INTEGER NOT NULL,
    size INTEGER NOT NULL, packed BLOB NOT NULL, sum INTEGER NOT NULL
) STRICT;
INSERT INTO volumes VALUES ('iscsi:iqn.2010-01.com.array:host-1,lun=5', 'target name and logical unit of iSCSI session1', 0, 'formatted', 1700000000, 'formatted by mkfs.ext4', '{"types":["ext4"],"uuid":"aaaaaaaa-0000-4000-8000-000000000001","label":null}', 1, 1, NULL, NULL, 1600000000, 'b0', 0, 1, NULL, 5630888085656231315, 1, 1700000000, NULL);
INSERT INTO marks VALUES ('iscsi:iqn.2010-01.com.array:host-1,lun=5', 1080, 'magic', x'53ef');
INSERT INTO marks VALUES ('iscsi:iqn.2010-01.com.array:host-1,lun=5', 1128, 'uuid', x'000102030405060708090a0b0c0d0e0f');
INSERT INTO volumes VALUES ('part:iscsi:iqn.2010-01.com.array:host-1,lun=6#2048', 'partition that starts at sector 2048', 0, 'formatted', 1700000000, 'a probe found it', '{"types":["ext4"],"uuid":"aaaaaaaa-0000-4000-8000-000000000002","label":null}', 1, 0, NULL, NULL, 1600000000, 'b0', 0, 0, NULL, 5549428877357888435, 3, 1700000000, NULL);
INSERT INTO marks VALUES ('part:iscsi:iqn.2010-01.com.array:host-1,lun=6#2048', 1080, 'magic', x'53ef');
INSERT INTO marks VALUES ('part:iscsi:iqn.2010-01.com.array:host-1,lun=6#2048', 1128, 'uuid', x'000102030405060708090a0b0c0d0e0f');
INSERT INTO volumes VALUES ('iscsi:iqn.2019-10.io.longhorn:pvc-1,lun=1', 'target name and logical unit of iSCSI session2', 0, 'formatted', 1700000000, 'formatted by cryptsetup', '{"types":["crypto_LUKS"],"uuid":"aaaaaaaa-0000-4000-8000-000000000003","label":null}', 1, 0, NULL, NULL, 1600000000, 'b0', 0, 0, NULL, -9152032743491272039, 2, 1700000000, NULL);
INSERT INTO marks VALUES ('iscsi:iqn.2019-10.io.longhorn:pvc-1,lun=1', 0, 'magic', x'4c554b53babe');
INSERT INTO volumes VALUES ('dm:mpath-36001405aaaaaaaabbbbbbbbccccccccdd', 'device mapper uuid of mpatha', 0, 'formatted', 1700000000, 'it was mounted', '{"types":["ext4"],"uuid":"aaaaaaaa-0000-4000-8000-000000000004","label":null}', 1, 1, NULL, NULL, 1600000000, 'b0', 0, 0, NULL, 390860951727261483, 1, 1700000000, NULL);
INSERT INTO marks VALUES ('dm:mpath-36001405aaaaaaaabbbbbbbbccccccccdd', 1080, 'magic', x'53ef');
INSERT INTO marks VALUES ('dm:mpath-36001405aaaaaaaabbbbbbbbccccccccdd', 1128, 'uuid', x'000102030405060708090a0b0c0d0e0f');
INSERT INTO volumes VALUES ('scsi:naa.6001405aaaaaaaabbbbbbbbccccccccdd', 'SCSI device identification (wwid)', 0, 'unverified', 1700000000, 'no answer within the deadline', NULL, 0, 0, NULL, NULL, 1600000000, 'b0', 0, 0, NULL, 7464142372833164612, 0, 1700000000, NULL);
INSERT INTO volumes VALUES ('rbd:kube/10226b8b4567,cluster=c0ffee', 'pool and image id of the RADOS block device kube/csi-vol-1', 0, 'formatted', 1700000000, 'formatted by mkfs.xfs', '{"types":["xfs"],"uuid":"aaaaaaaa-0000-4000-8000-000000000005","label":"data"}', 1, 0, NULL, NULL, 1600000000, 'b0', 0, 0, NULL, -8573993772647063419, 1, 1700000000, NULL);
INSERT INTO marks VALUES ('rbd:kube/10226b8b4567,cluster=c0ffee', 0, 'magic', x'58465342');
INSERT INTO volumes VALUES ('nvme:nvme.1d0f-766f6c3031-416d617a6f6e-00000001', 'vendor, serial, model and namespace number', 0, 'formatted', 1700000000, 'x', '{"types":["ext4"],"uuid":"aaaaaaaa-0000-4000-8000-000000000006","label":null}', 1, 0, NULL, NULL, 1600000000, 'b0', 0, 0, NULL, 8671354006704588907, 1, 1700000000, NULL);
INSERT INTO marks VALUES ('nvme:nvme.1d0f-766f6c3031-416d617a6f6e-00000001', 1080, 'magic', x'53ef');
INSERT INTO marks VALUES ('nvme:nvme.1d0f-766f6c3031-416d617a6f6e-00000001', 1128, 'uuid', x'000102030405060708090a0b0c0d0e0f');
INSERT INTO volumes VALUES ('path:virtual/block/nbd0', 'its place among the devices', 1, 'exempt', 1700000000, 'exempted by user 0: vm', NULL, 0, 0, NULL, NULL, 1600000000, 'b0', 0, 0, NULL, 3334890080760550007, 0, 1700000000, NULL);
INSERT INTO volumes VALUES ('path:pci0000:00/virtio1/block/vdb', 'its place among the devices', 1, 'formatted', 1700000000, 'x', '{"types":["ext4"],"uuid":"aaaaaaaa-0000-4000-8000-000000000007","label":null}', 1, 0, NULL, NULL, 1600000000, 'b0', 0, 0, NULL, 2567282890614785848, 1, 1700000000, NULL);
INSERT INTO marks VALUES ('path:pci0000:00/virtio1/block/vdb', 1080, 'magic', x'53ef');
INSERT INTO marks VALUES ('path:pci0000:00/virtio1/block/vdb', 1128, 'uuid', x'000102030405060708090a0b0c0d0e0f');
INSERT INTO volumes VALUES ('loop:12:1700000000000000000', 'inode and time of birth', 0, 'blank', 1700000000, 'probed twice, clean and blank', NULL, 0, 0, NULL, NULL, 1600000000, 'b0', 0, 0, 'b0', -6624150177399702313, 0, 1700000000, 'zeros');
INSERT INTO volumes VALUES ('dm:CRYPT-LUKS2-0123456789abcdef0123456789abcdef', 'device mapper uuid of x', 0, 'permitted', 1700000000, 'x', '{"types":["ext4"],"uuid":"aaaaaaaa-0000-4000-8000-000000000008","label":null}', 1, 0, NULL, NULL, 1600000000, 'b0', 0, 0, 'b0', -5653530352983152771, 1, 1700000000, NULL);
INSERT INTO marks VALUES ('dm:CRYPT-LUKS2-0123456789abcdef0123456789abcdef', 1080, 'magic', x'53ef');
INSERT INTO marks VALUES ('dm:CRYPT-LUKS2-0123456789abcdef0123456789abcdef', 1128, 'uuid', x'000102030405060708090a0b0c0d0e0f');
INSERT INTO permits VALUES ('dm:CRYPT-LUKS2-0123456789abcdef0123456789abcdef', '{"reason":"restore","uid":0,"at":1,"expires":2}');
INSERT INTO events (at, volume, kind, text, first) VALUES (1700000000, 'iscsi:iqn.2010-01.com.array:host-1,lun=5', 'formatted', 'holds ext4: formatted by mkfs.ext4', 1700000000);
COMMIT;
PRAGMA user_version = 11;
