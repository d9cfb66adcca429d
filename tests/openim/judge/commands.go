package main

import "github.com/openimsdk/open-im-server/v3/pkg/callbackstruct"

// structs makes the two structs of a command, empty.
type structs struct {
	request  func() callbackstruct.CallbackReq
	response func() callbackstruct.CallbackResp
}

// commands is every command that this version of the server sends, with its structs.
var commands = map[string]structs{
	"callbackBeforeInviteJoinGroupCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackBeforeInviteUserToGroupReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackBeforeInviteUserToGroupResp{} },
	},
	"callbackAfterJoinGroupCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackAfterJoinGroupReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackAfterJoinGroupResp{} },
	},
	"callbackAfterSetGroupInfoCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackAfterSetGroupInfoReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackAfterSetGroupInfoResp{} },
	},
	"callbackAfterSetGroupInfoExCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackAfterSetGroupInfoExReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackAfterSetGroupInfoExResp{} },
	},
	"callbackBeforeSetGroupInfoCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackBeforeSetGroupInfoReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackBeforeSetGroupInfoResp{} },
	},
	"callbackBeforeSetGroupInfoExCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackBeforeSetGroupInfoExReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackBeforeSetGroupInfoExResp{} },
	},
	"callbackBeforeAfterMsgCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackAfterRevokeMsgReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackAfterRevokeMsgResp{} },
	},
	"callbackBeforeAddBlackCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackBeforeAddBlackReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackBeforeAddBlackResp{} },
	},
	"callbackAfterAddFriendCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackAfterAddFriendReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackAfterAddFriendResp{} },
	},
	"callbackBeforeAddFriendAgreeCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackBeforeAddFriendAgreeReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackBeforeAddFriendAgreeResp{} },
	},
	"callbackAfterAddFriendAgreeCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackAfterAddFriendAgreeReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackAfterAddFriendAgreeResp{} },
	},
	"callbackAfterDeleteFriendCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackAfterDeleteFriendReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackAfterDeleteFriendResp{} },
	},
	"callbackBeforeImportFriendsCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackBeforeImportFriendsReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackBeforeImportFriendsResp{} },
	},
	"callbackAfterImportFriendsCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackAfterImportFriendsReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackAfterImportFriendsResp{} },
	},
	"callbackAfterRemoveBlackCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackAfterRemoveBlackReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackAfterRemoveBlackResp{} },
	},
	"callbackAfterQuitGroupCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackQuitGroupReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackQuitGroupResp{} },
	},
	"callbackAfterKickGroupCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackKillGroupMemberReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackKillGroupMemberResp{} },
	},
	"callbackAfterDisMissGroupCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackDisMissGroupReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackDisMissGroupResp{} },
	},
	"callbackBeforeJoinGroupCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackJoinGroupReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackJoinGroupResp{} },
	},
	"callbackAfterGroupMsgReadCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackGroupMsgReadReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackGroupMsgReadResp{} },
	},
	"callbackBeforeMsgModifyCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackMsgModifyCommandReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackMsgModifyCommandResp{} },
	},
	"callbackAfterUpdateUserInfoCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackAfterUpdateUserInfoReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackAfterUpdateUserInfoResp{} },
	},
	"callbackAfterUpdateUserInfoExCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackAfterUpdateUserInfoExReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackAfterUpdateUserInfoExResp{} },
	},
	"callbackBeforeUpdateUserInfoExCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackBeforeUpdateUserInfoExReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackBeforeUpdateUserInfoExResp{} },
	},
	"callbackBeforeUserRegisterCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackBeforeUserRegisterReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackBeforeUserRegisterResp{} },
	},
	"callbackAfterUserRegisterCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackAfterUserRegisterReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackAfterUserRegisterResp{} },
	},
	"callbackAfterTransferGroupOwnerCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackTransferGroupOwnerReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackTransferGroupOwnerResp{} },
	},
	"callbackBeforeSetFriendRemarkCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackBeforeSetFriendRemarkReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackBeforeSetFriendRemarkResp{} },
	},
	"callbackAfterSetFriendRemarkCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackAfterSetFriendRemarkReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackAfterSetFriendRemarkResp{} },
	},
	"callbackAfterSingleMsgReadCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackSingleMsgReadReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackSingleMsgReadResp{} },
	},
	"callbackBeforeSendSingleMsgCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackBeforeSendSingleMsgReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackBeforeSendSingleMsgResp{} },
	},
	"callbackAfterSendSingleMsgCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackAfterSendSingleMsgReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackAfterSendSingleMsgResp{} },
	},
	"callbackBeforeSendGroupMsgCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackBeforeSendGroupMsgReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackBeforeSendGroupMsgResp{} },
	},
	"callbackAfterSendGroupMsgCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackAfterSendGroupMsgReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackAfterSendGroupMsgResp{} },
	},
	"callbackAfterUserOnlineCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackUserOnlineReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CommonCallbackResp{} },
	},
	"callbackAfterUserOfflineCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackUserOfflineReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackUserOfflineResp{} },
	},
	"callbackAfterUserKickOffCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackUserKickOffReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CommonCallbackResp{} },
	},
	"callbackBeforeOfflinePushCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackBeforePushReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackBeforePushResp{} },
	},
	"callbackBeforeOnlinePushCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackBeforePushReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackBeforePushResp{} },
	},
	"callbackBeforeGroupOnlinePushCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackBeforeSuperGroupOnlinePushReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackBeforeSuperGroupOnlinePushResp{} },
	},
	"callbackBeforeAddFriendCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackBeforeAddFriendReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackBeforeAddFriendResp{} },
	},
	"callbackBeforeUpdateUserInfoCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackBeforeUpdateUserInfoReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackBeforeUpdateUserInfoResp{} },
	},
	"callbackBeforeCreateGroupCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackBeforeCreateGroupReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackBeforeCreateGroupResp{} },
	},
	"callbackAfterCreateGroupCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackAfterCreateGroupReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackAfterCreateGroupResp{} },
	},
	"callbackBeforeMembersJoinGroupCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackBeforeMembersJoinGroupReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackBeforeMembersJoinGroupResp{} },
	},
	"callbackBeforeSetGroupMemberInfoCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackBeforeSetGroupMemberInfoReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackBeforeSetGroupMemberInfoResp{} },
	},
	"callbackAfterSetGroupMemberInfoCommand": {
		func() callbackstruct.CallbackReq { return &callbackstruct.CallbackAfterSetGroupMemberInfoReq{} },
		func() callbackstruct.CallbackResp { return &callbackstruct.CallbackAfterSetGroupMemberInfoResp{} },
	},
}
