"""Pages read strictly, and text that must do them no harm."""
import html.parser

HOSTILE = '<script>alert(1)</script><img src=x onerror=alert(2)> & "quotes" \x1b[31m \x00 \ud800 </pre></details>'
VOID = {'meta', 'link', 'br', 'img', 'hr', 'input'}


class Page(html.parser.HTMLParser):
  """Reads a page strictly: every tag is closed in order. Keeps tags with attributes, and the text inside each tag."""

  def __init__(self, source):
    super().__init__()
    self.open, self.tags, self.texts = [], [], []
    self.feed(source)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, text):
    self.texts.append((self.open[-1] if self.open else '', text))

  def all(self, tag, **attributes):
    """Attributes of the tags of that name, and of that `class_`."""
    return [a for t, a in self.tags if t == tag and all(a.get(k.rstrip('_')) == v for k, v in attributes.items())]

  def text(self, tag=None):
    return ' '.join(text for t, text in self.texts if t != 'style' and tag in (None, t))
