"""Tells short promotional pages: how to reach a seller, and the phrases of selling, close together.

A page is an advertisement if contacts and phrases make up much of it. A contact alone is none (news and notices have
telephone numbers), nor are phrases alone (a shop's prices in a schoolbook); so there have to be both.
"""

import re
from dataclasses import dataclass
from functools import cache

from mindllm_engine._native import PhraseSet, TextProfile

# Telephone and messenger numbers, with the words that announce them.
CONTACTS = re.compile(
    r"(?:QQ群?|[微薇威]信号?|WeChat|Weixin|WhatsApp|Telegram|\b[vw]x|扣扣|企鹅群?)"
    r"\s*(?:ID|号|同号|搜索?|加)?\s*[:：+＋是为—-]?\s*@?[a-z0-9][a-z0-9_-]{4,19}"
    r"|(?<!\d)(?:\+?86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}(?!\d)"  # Chinese mobile telephone
    r"|(?<!\d)[48]00[ -]?\d{3,4}[ -]?\d{3,4}(?!\d)"  # service number
    r"|(?<!\d)0\d{2,3}[ -]\d{7,8}(?!\d)"  # Chinese landline
    r"|(?<![\d.])(?:\+?1[ .-]?)?\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}(?!\d)"  # North America
    r"|(?:电话|热线|手机|致电|call|text|phone|tel)\s*(?:us|now|at)?\s*[:：.]?\s*\+?\d[\d -]{6,17}",
    re.IGNORECASE,
)

PRICE_AND_HURRY = """
优惠 特惠 特价 促销 限时 秒杀 抢购 低价 最低价 立减 满减 包邮 免费领取 免费试用 免费试听 免费咨询 免费体验 赠送
大礼包 大放送 买一送一 折起 折优惠 折扣 名额有限 数量有限 先到先得 机会难得 不容错过 错过今天 火爆 热卖 热销 爆款
清仓 亏本 全网最低 史上最低 原价 现价 仅需 仅售 仅剩 红包
"""
WHAT_TO_DO = """
立即购买 立即抢购 立即咨询 立即拨打 立即下单 立即加入 立即领取 立即报名 马上购买 马上抢购 马上咨询 马上拨打 马上下单
马上报名 赶快 赶紧 点击购买 点击链接 点击咨询 点击领取 点击下单 点击注册 欢迎来电 欢迎咨询 欢迎选购 欢迎订购
欢迎致电 咨询热线 客服热线 订购热线 服务热线 联系电话 加微信 加我微信 扫码 私聊 详情咨询 来电咨询 诚招 诚聘 诚邀
招商 加盟 招代理 诚招代理 厂家直销 厂家直供 批发 一手货源 长期供应 长期合作 专业办理 专业代办 专业团队 代办 代开
包过 上门服务 质量保证 品质保证 信誉保证 货到付款 无效退款 假一赔十 正品 高薪 日结 日赚 轻松赚 月入 稳赚 零风险
无抵押 秒到账 注册送 首充 返利 赚钱 兼职
"""
ENGLISH = (
    "buy now", "buy today", "buy one", "buy online", "order now", "order today", "order online", "shop now",
    "click here", "click now", "click below", "call us", "call now", "call today", "contact us", "act now",
    "act fast", "act today", "sign up now", "sign up today", "limited time", "limited-time", "limited offer",
    "limited stock", "special offer", "special offers", "special price", "special deal", "best price", "best prices",
    "best deal", "best deals", "best offer", "lowest price", "lowest prices", "low prices", "great deal",
    "great deals", "hot deal", "hot deals", "exclusive offer", "exclusive deal", "free shipping", "free trial",
    "free quote", "free delivery", "free gift", "free estimate", "free estimates", "free consultation",
    "free sample", "free samples", "money back", "money-back", "% off", "% discount", "satisfaction guaranteed",
    "100% guaranteed", "100% free", "100% safe", "discount", "discounts", "promo", "promotion", "promotions",
    "coupon", "coupons", "bargain", "bargains", "clearance", "on sale", "for sale", "sale ends", "supplies last",
    "stocks last", "stock lasts", "don't miss", "hurry", "risk free", "risk-free", "no obligation", "earn cash",
    "earn money", "make money", "work from home", "join now", "join today", "wholesale", "factory price",
)  # fmt: skip

# Contacts are only looked for where there are as many phrases.
FEWEST_PHRASES = 2


@dataclass(frozen=True)
class Promotion:
    """What of a page promotes.

    Attributes:
        share: of the page's characters that are no spaces, those in contacts and phrases.
    """

    contacts: int
    phrases: int
    share: float

    def __str__(self) -> str:
        return f"{self.contacts} contacts and {self.phrases} phrases, {self.share:.0%} of the text"


def promotion(text: str, profile: TextProfile) -> Promotion:
    """Count a page's contacts and phrases.

    Args:
        profile: of this text.
    """
    phrases, chars = phrase_set().count(text)
    if phrases < FEWEST_PHRASES:
        return Promotion(0, phrases, 0.0)
    contacts = [len(found.group()) for found in CONTACTS.finditer(text)]
    return Promotion(len(contacts), phrases, (sum(contacts) + chars) / max(1, profile.characters - profile.spaces))


@cache
def phrase_set() -> PhraseSet:
    """Made on first use: it cannot be pickled."""
    return PhraseSet([*PRICE_AND_HURRY.split(), *WHAT_TO_DO.split(), *ENGLISH])
